"""The recognizer: a bundle that is ready to tag pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Backend, Crop, Device, Precision
from sigrl_deploy.engines.engine import Engine
from sigrl_deploy.engines.opening import open_engine
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import ImageError, LabelError, ScoreError, UsageError, member_of
from sigrl_deploy.labels.label_set import FEW_LABELS, Label, LabelSet
from sigrl_deploy.machine import cpus
from sigrl_deploy.machine.cache_folder import default_cache_dir, require_private
from sigrl_deploy.model import matching
from sigrl_deploy.pictures.crops import View, Views
from sigrl_deploy.pictures.reading import ImageSource, name_of, read_image
from sigrl_deploy.pictures.reading_ahead import batches
from sigrl_deploy.recognizer.checks import check_batch_size, check_crop, check_pixels, check_vocabulary, several
from sigrl_deploy.recognizer.pipeline import Pipeline
from sigrl_deploy.recognizer.predictions import Prediction, Record
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.recognizer.streaming import Picture, enough_memory, stream_records
from sigrl_deploy.recognizer.thresholds import Scope, Thresholds
from sigrl_deploy.recognizer.vocabularies import Vocabularies
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

Labels: TypeAlias = "Iterable[str | Label] | LabelSet | str | os.PathLike[str] | Vocabulary | None"

Prepared = TypeVar("Prepared")

_BATCH_SIZE = {"cpu": 1, "cuda": 16}


@dataclass(frozen=True)
class _Opened:
    """What `close` releases. Labels of `passing` are kept in memory only."""

    pipeline: Pipeline
    vocabularies: Vocabularies
    passing: Vocabularies
    prepare: Callable[[Image.Image], Pixels]
    view: Views


class Recognizer:
    """A bundle, ready to tag pictures. It may be shared between threads.

    >>> with Recognizer("bundle") as recognizer:
    ...     for predictions in recognizer.recognize(["cat.jpg", "cup.jpg"], ["cat", "cup of coffee", "rocket"], top=2):
    ...         print(len(predictions), predictions[0].score >= predictions[1].score)
    2 True
    2 True

    `labels` may be, in every method: a list of labels, each a text or a `Label`; a `LabelSet`; the path of a label file; a
    `Vocabulary`; or None, the vocabulary that the bundle was exported with. Label embeddings are cached, so the same labels are
    encoded only once.

    Args:
        bundle: the folder that export wrote. Its hashes are checked.
        backend: what runs it, see `Backend`; by default PyTorch where it has a GPU, else ONNX Runtime.
        device: see `Device`; by default a GPU where the backend has one, else the CPU.
        precision: one of the bundle's, see `Precision`; by default the first that the backend runs on the device.
        threads: CPU threads for graphs; by default $OMP_NUM_THREADS, or the CPUs that affinity and control groups leave to
            this process. PyTorch on a CPU has one number for the whole process, which is set to `threads` if that is given.
        cache_dir: where label embeddings are kept between runs. None means $SIGRL_DEPLOY_CACHE or the user's cache folder,
            False means memory only. Compiled kernels are kept there too, so nobody else may be able to write to it.
        crop: how much is shown to the model of pictures far from square, see `Crop`; by default what the bundle's preprocessing
            contract does. `pixels` and `score_pixels` stay with the contract.
        options: further options for the engine. The arguments above, where given, replace the same fields in it.

    Raises:
        BundleError: the bundle is damaged, has another format version, or holds no file that the device can run.
        UsageError: an argument cannot be used: the backend is not installed, the device is not there or has no
            preprocessing, others can write to the cache folder, the contract shows the whole picture anyway.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        backend: Backend | str | None = None,
        device: Device | str | None = None,
        precision: Precision | str | None = None,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | bool | None = None,
        crop: Crop | str = Crop.CENTRE,
        options: EngineOptions | None = None,
    ) -> None:
        self.crop = member_of(Crop, crop, "crop")
        given = {"backend": backend, "device": device, "precision": precision, "threads": threads}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        options = replace(options or EngineOptions(), **chosen)
        self.threads = options.threads or cpus.threads()
        self.bundle = Bundle(Path(bundle))
        manifest = self.bundle.manifest
        check_crop(self.crop, manifest.preprocess, options.device_preprocess)
        folder = _cache_folder(cache_dir)
        if folder is not None:
            require_private(folder)
            options = replace(options, cache_folder=options.cache_folder or folder / "kernels")
        engine = open_engine(self.bundle, options)
        log.info("engine: %s", engine.description)
        contract = engine.preprocess() if options.device_preprocess else manifest.preprocess
        if options.device_preprocess:
            log.info("preprocessing on %s: %s", engine.device, self._drift(engine))
        prepare = contract.uint8 if engine.takes_uint8 else contract
        vocabularies = Vocabularies(self.bundle, engine, folder, options.unfused)
        passing = vocabularies if folder is None else Vocabularies(self.bundle, engine, None, options.unfused)
        view = Views(manifest.preprocess, manifest.patch_size, self.crop, prepare, uint8=engine.takes_uint8)
        self._opened: _Opened | None = _Opened(Pipeline(manifest, engine), vocabularies, passing, prepare, view)

    def _drift(self, engine: Engine) -> str:
        drift = self.bundle.manifest.variants[engine.precision].parity.get("device_preprocess_drift")
        if not isinstance(drift, float):
            return "export did not measure how far scores are from Pillow's; export the bundle with its weights"
        return f"scores are within {drift:.1e} of those with Pillow, as export measured on its CPU"

    def close(self) -> None:
        """Release the engine, with its sessions and memory. A closed recognizer raises UsageError when it is used.

        >>> recognizer = Recognizer("bundle")
        >>> recognizer.close()
        """
        self._opened = None

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise UsageError(f"the recognizer of {self.bundle.path} is closed; open another one")
        return self._opened

    @property
    def engine(self) -> Engine:
        """What runs the bundle, with its description, device and precision."""
        return self._open.pipeline.engine

    @property
    def pipeline(self) -> Pipeline:
        """What runs views of pictures through the engine; `recognize` and `stream` are made of it."""
        return self._open.pipeline

    @property
    def rules(self) -> dict[str, object]:
        """By name, everything except weights that scores depend on."""
        manifest = self.bundle.manifest
        preprocess = manifest.preprocess.description
        return {"arch": manifest.arch.value, "topk": manifest.topk, "template": manifest.template, "preprocess": preprocess}

    def recognize(
        self,
        images: Iterable[ImageSource],
        labels: Labels = None,
        *,
        top: int | None = None,
        threshold: float | None = None,
        thresholds: str | os.PathLike[str] | Thresholds | None = None,
        evidence: bool = False,
        batch_size: int | None = None,
    ) -> list[list[Prediction]]:
        """The best labels of every picture, best first.

        >>> with Recognizer("bundle") as recognizer:
        ...     (predictions,) = recognizer.recognize(["cat.jpg"], "labels.txt", top=3, evidence=True)
        >>> len(predictions), predictions[0].evidence.shape
        (3, (5, 5))

        Args:
            images: each a path, a PIL image, an array [H, W, 3] of uint8, or the bytes of a picture file.
            labels: see the class.
            top: at most so many labels per picture, besides their parents; by default 5, or any number with `thresholds`.
            threshold: leave out labels that score below it. It holds for one vocabulary only. A label's own goes before it.
            thresholds: a file that `sigrl-deploy calibrate` wrote for these labels: one for each of them.
            evidence: give each prediction its match with every patch of the picture, as `evidence` and `strength`.
            batch_size: pictures per batch; by default 16 on a GPU and 1 on a CPU. No more tiles than that are run at once.

        Raises:
            ImageError: a picture cannot be read. `stream` goes on with the others.
            ScoreError: a picture's scores are not finite.
            LabelError: the labels cannot be used; see `vocabulary`.
            UsageError: an argument cannot be used, or the architecture matches no patches and has no evidence.
        """
        vocabulary, size = self._advised(labels), self._batch_size(batch_size)
        selection = self.selection(vocabulary, top, threshold, thresholds, evidence)
        found: list[list[Prediction]] = []
        with enough_memory(size):
            for batch in self.pipeline.predictions(self._views_of(images, size), vocabulary, selection, size):
                for scores, predictions in batch:
                    self._require_finite(scores, len(found))
                    found.append(list(predictions))
        return found

    def stream(
        self,
        paths: Iterable[Picture],
        labels: Labels = None,
        *,
        top: int | None = None,
        threshold: float | None = None,
        thresholds: str | os.PathLike[str] | Thresholds | None = None,
        evidence: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Record]:
        """A record for each picture, in order, as its batch is done. A picture that cannot be read is a record too.

        >>> with Recognizer("bundle") as recognizer:
        ...     for record in recognizer.stream(["cat.jpg", "missing.jpg"], "labels.txt", top=3):
        ...         print(record.path, [p.label for p in record.predictions] if record.error is None else record.error)
        cat.jpg [...]
        missing.jpg ...

        Pictures are decoded in threads, ahead of inference. Memory depends on the batch size, not on the number of pictures:
        `paths` may be a generator without end. It is read max(threads, 2 × batch size) paths ahead of the batch at the model,
        eight threads being the most, so the first record comes after that many paths, or the last one. In place of a path may
        be a pair of a name and the bytes of a picture file, or of a name and a function that a thread calls for the bytes; an
        OSError or ImageError of it is the picture's error. Other arguments are those of `recognize`.

        Raises LabelError and UsageError as `recognize` does.
        """
        vocabulary, size = self._advised(labels), self._batch_size(batch_size)
        selection = self.selection(vocabulary, top, threshold, thresholds, evidence)
        return stream_records(
            several(paths, "paths"),
            self.view,
            partial(self.pipeline.predictions, vocabulary=vocabulary, selection=selection, size=size),
            batch_size=size,
            threads=self.threads,
            not_finite=matching.not_finite(self.engine.precision.value),
        )

    def scores(self, images: Iterable[ImageSource], labels: Labels = None, *, batch_size: int | None = None) -> FloatArray:
        """Scores fp32 [N, C] of every picture and label, in the order of the vocabulary.

        >>> with Recognizer("bundle") as recognizer:
        ...     recognizer.scores(["cat.jpg", "cup.jpg"], ["cat", "cup of coffee", "rocket"]).shape
        (2, 3)

        Arguments and errors are those of `recognize`.
        """
        vocabulary, size = self.vocabulary(labels), self._batch_size(batch_size)
        rows: list[FloatArray] = []
        with enough_memory(size):
            for batch in self.pipeline.scores(self._views_of(images, size), vocabulary, size):
                for scores in batch:
                    self._require_finite(scores, len(rows))
                    rows.append(scores)
        return np.stack(rows) if rows else np.zeros((0, len(vocabulary)), np.float32)

    def vocabulary(self, labels: Labels = None, *, kept: bool = True) -> Vocabulary:
        """Labels with everything that scoring needs. Cached in memory and on disk, so a second call does no text work.

        With `kept` False they are cached in memory only: for labels of strangers, who should not fill the disk.

        >>> with Recognizer("bundle") as recognizer:
        ...     len(recognizer.vocabulary(["cat", "cup of coffee", "rocket"]))
        3

        Raises LabelError for labels that cannot be used: an empty, repeated or overlong one, one that a bundle without a text
        encoder has no embedding of, or None where the bundle has no vocabulary. Raises UsageError for a `Vocabulary` that
        another bundle made.
        """
        vocabularies = self._open.vocabularies
        if labels is None:
            if vocabularies.bundled is None:
                raise LabelError("the bundle has no vocabulary of its own; give labels or a label file", argument="labels")
            return vocabularies.bundled
        if not isinstance(labels, Vocabulary):
            cached = vocabularies if kept else self._open.passing
            return cached.of(labels if isinstance(labels, str) or not isinstance(labels, os.PathLike) else Path(labels))
        check_vocabulary(labels, vocabularies.origin)
        return labels

    @property
    def own_labels(self) -> tuple[str, ...] | None:
        """The labels that the bundle was exported with, None where it has no vocabulary."""
        own = self._open.vocabularies.bundled
        return None if own is None else own.labels

    def pixels(self, image: ImageSource) -> Pixels:
        """One picture → [3, H, W], prepared by the bundle's preprocessing contract.

        They are fp32, or uint8 where the engine normalises them itself; `score_pixels` takes both there.

        Raises ImageError where the picture cannot be read.
        """
        return self._prepared(image, self._open.prepare)

    def view(self, image: ImageSource) -> View:
        """One picture → what the model is shown of it, for `pipeline`. Raises ImageError where the picture cannot be read."""
        return self._prepared(image, self._open.view)

    def _prepared(self, image: ImageSource, prepare: Callable[[Image.Image], Prepared]) -> Prepared:
        picture = read_image(image)
        try:
            return prepare(picture)
        except ImageError as error:
            raise ImageError(f"{name_of(image)}: {error}") from None

    def score_pixels(self, pixels: Pixels, vocabulary: Vocabulary) -> FloatArray:
        """pixels [B, 3, H, W] → scores fp32 [B, C]. Raises ScoreError where one is not finite."""
        check_pixels(pixels, self.bundle.manifest.image_size, self.engine.takes_uint8)
        check_vocabulary(vocabulary, self._open.vocabularies.origin)
        scores = self.engine.score(pixels, vocabulary)
        matching.require_finite(scores, self.engine.precision.value)
        return vocabulary.scores(scores)

    def score_batches(self, batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[FloatArray]:
        """The scores of each batch, in order, as `score_pixels` gives them, without the check that they are finite.

        A GPU gets a batch while the one before it runs: the scores of one come when the next was taken from `batches`.
        """
        check_vocabulary(vocabulary, self._open.vocabularies.origin)
        return self.pipeline.score_batches(batches, vocabulary)

    def _views_of(self, images: Iterable[ImageSource], batch_size: int) -> Iterator[list[View]]:
        for batch in batches(iter(several(images, "images")), batch_size):
            yield [self.view(image) for image in batch]

    def selection(
        self,
        vocabulary: Vocabulary,
        top: int | None = None,
        threshold: float | None = None,
        thresholds: str | os.PathLike[str] | Thresholds | None = None,
        evidence: bool = False,
    ) -> Selection:
        """Which labels of a picture become predictions, by the arguments of `recognize`. Raises UsageError as that does."""
        arch = self.bundle.manifest.arch
        chosen = Selection.of(arch, lambda: self.scope(vocabulary), vocabulary, top, threshold, thresholds, evidence)
        chosen.check(arch)
        return chosen

    def scope(self, vocabulary: Vocabulary) -> Scope:
        """What thresholds for this vocabulary hold for."""
        return Scope.of(self.bundle.manifest, self.engine.precision, self.crop, vocabulary)

    def _batch_size(self, asked: int | None) -> int:
        if asked is None:
            return _BATCH_SIZE[self.engine.device]
        check_batch_size(asked)
        return int(asked)

    def _advised(self, labels: Labels) -> Vocabulary:
        vocabulary = self.vocabulary(labels)
        if len(vocabulary.label_embedding) < FEW_LABELS and self.bundle.manifest.arch.compares_labels:
            _advise_more_labels(len(vocabulary))
        return vocabulary

    def _require_finite(self, scores: FloatArray, picture: int) -> None:
        if not np.isfinite(scores).all():
            raise ScoreError(f"images[{picture}]: {matching.not_finite(self.engine.precision.value)}", picture)


def _cache_folder(asked: str | os.PathLike[str] | bool | None) -> Path | None:
    """Where embeddings are kept; None for memory only."""
    if isinstance(asked, bool) or asked is None:
        return None if asked is False else default_cache_dir()
    return Path(os.fsdecode(asked))


@cache  # once is enough
def _advise_more_labels(labels: int) -> None:
    log.warning(
        "%d label%s: scores compare the labels of one picture, and with so few even a wrong one may score high; add labels "
        "of other things that may be in the pictures, or a `background` of everyday things, which are compared and never tags",
        labels,
        "" if labels == 1 else "s",
    )
