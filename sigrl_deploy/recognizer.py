"""Pictures + a vocabulary → tags."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import TOKENIZER, VOCABULARY
from sigrl_deploy.config import Arch, Backend, Device, Precision
from sigrl_deploy.engines.engine import Preparation
from sigrl_deploy.engines.opening import open_engine
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import BundleError, ImageError, LabelError, UsageError, member_of
from sigrl_deploy.files import DamagedFileError
from sigrl_deploy.machine import cpus
from sigrl_deploy.machine.cache_folder import default_cache_dir, require_private
from sigrl_deploy.model import matching
from sigrl_deploy.pictures.reading import ImageSource, name_of, read_image
from sigrl_deploy.vocabulary.cache import VocabularyCache, digest
from sigrl_deploy.vocabulary.label_files import check_labels, read_labels
from sigrl_deploy.vocabulary.tokenizer import Tokenizer
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_FEW_LABELS = 10


@dataclass(frozen=True)
class Tag:
    """One label of one picture.

    `score` ranks the labels of one picture under one vocabulary; it is no probability, and shrinks as the vocabulary grows.
    `evidence` [rows, columns] fp32, where asked for, is each patch's match with the label; the largest k made the local score.
    """

    label: str
    score: float
    evidence: FloatArray | None = field(default=None, repr=False, compare=False)


class Recognizer:
    """A bundle, ready to tag pictures. It may be shared between threads.

    Args:
        bundle: the folder that export wrote; its hashes are checked.
        device: "auto" (a GPU where the backend has one, else the CPU), "cpu" or "cuda".
        backend: "onnxruntime", "openvino" (on a CPU), "torch" (needs PyTorch, and a bundle exported with its weights),
            "tensorrt" (engines of this project), "onnxruntime-tensorrt" (those of ONNX Runtime's provider), or "auto": torch
            where it has a GPU, else onnxruntime.
        precision: of the bundle's variants, by default its first that the device can run.
        cache_dir: where label embeddings are kept between runs; None for $SIGRL_DEPLOY_CACHE or the user's cache folder,
            False for memory alone. Compiled kernels are kept there too, so nobody else may be able to write to it.
        unfused: ops among "svfr", "match" and "gmc" that run in their plain form, not as kernels.
        device_preprocess: resize pictures on the device instead of in Pillow (torch only); what that changes of the scores,
            which export measured, is logged.
        build: whether "tensorrt" may build an engine where the bundle has none for this machine; if not it falls back.
        threads: of the CPU, for graphs; by default $OMP_NUM_THREADS, or the CPUs that affinity and control groups leave this
            process. PyTorch on a CPU has one number for the whole process, which is set to `threads` if they are given.

    Raises:
        BundleError: the bundle is damaged, of another format version, or has no file that the device can run.
        UsageError: the device is not there, the backend has no fused ops or no preprocessing, others can write to the cache
            folder, or `threads` is below 1.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: Device | str = Device.AUTO,
        backend: Backend | str = Backend.AUTO,
        precision: Precision | str | None = None,
        cache_dir: str | Path | bool | None = None,
        unfused: Collection[str] = (),
        device_preprocess: bool = False,
        build: bool = True,
        threads: int | None = None,
    ) -> None:
        options = EngineOptions(
            backend=member_of(Backend, backend, "backend"),
            device=member_of(Device, device, "device"),
            precision=None if precision is None else member_of(Precision, precision, "precision"),
            unfused=frozenset(unfused),
            build=build,
            threads=threads,
        )
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}, expected at least 1")
        self.threads = threads or cpus.threads()
        self.bundle = Bundle(bundle)
        folder = None if cache_dir is False else Path(cache_dir) if isinstance(cache_dir, (str, Path)) else default_cache_dir()
        if folder is not None:
            require_private(folder)
        self.engine = open_engine(self.bundle, replace(options, cache_folder=folder / "kernels" if folder else None))
        self._cache = self._open_cache(folder, {"gmc"} & set(unfused))
        log.info("engine: %s", self.engine.description)
        prepare: Preparation = self.engine.preprocess() if device_preprocess else self.bundle.manifest.preprocess
        self._preprocess: Callable[[Image.Image], Pixels] = prepare.uint8 if self.engine.takes_uint8 else prepare
        if device_preprocess:
            log.info("preprocessing on %s: %s", self.engine.device, self._drift())

    def _drift(self) -> str:
        drift = self.bundle.manifest.variants[self.engine.precision].parity.get("device_preprocess_drift")
        if not isinstance(drift, float):
            return "how far scores are from Pillow's was not measured at export; export again with --weights"
        return f"scores within {drift:.1e} of those with Pillow, as export measured on its CPU"

    @property
    def rules(self) -> dict[str, object]:
        """By name, everything beside weights that scores depend on."""
        manifest = self.bundle.manifest
        preprocess = manifest.preprocess.contract.value
        return {"arch": manifest.arch.value, "topk": manifest.topk, "template": manifest.template, "preprocess": preprocess}

    def _open_cache(self, folder: Path | None, unfused: set[str]) -> VocabularyCache:
        manifest = self.bundle.manifest
        rows = manifest.files[TOKENIZER if manifest.context_length else VOCABULARY]
        # What the files say, not what the manifest says of them: two bundles that differ must never share a row.
        text_key = digest(*self.engine.text_digests, rows, manifest.template, str(manifest.context_length))
        return VocabularyCache(
            folder,
            text_key=text_key,
            graph_key=digest("graph", *unfused) if manifest.arch.has_graph else "",
            encode=self._encode_labels if manifest.context_length else self._embed_known_labels,
            project=self.engine.project_graph,
            width=manifest.embed_dim,
            about=f"{self.bundle.path.absolute()}, {self.engine.precision.torch_name}, template {manifest.template!r}",
        )

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        length = self.bundle.manifest.context_length
        assert length is not None
        return Tokenizer(self.bundle.file(TOKENIZER), length)

    def _encode_labels(self, labels: Sequence[str]) -> FloatArray:
        """A batch of labels → T [N, D]."""
        template = self.bundle.manifest.template
        token_ids = self._tokenizer([template.replace("{label}", label) for label in labels])
        # Columns behind the last end-of-text token, the highest id, change nothing and cost most of the time.
        return self.engine.encode_labels(token_ids[:, : int(token_ids.argmax(axis=1).max()) + 1])

    def _embed_known_labels(self, labels: Sequence[str]) -> FloatArray:
        own = self.bundled_vocabulary
        assert own is not None
        row = {label: i for i, label in enumerate(own.labels)}
        unknown = [label for label in labels if label not in row]
        if unknown:
            raise LabelError(
                f"label {unknown[0]!r}: the bundle has no text encoder and knows its own {len(own)} labels only; "
                "leave the label out, or export with --text-tower"
            )
        return own.label_embedding[[row[label] for label in labels]]

    @cached_property
    def bundled_vocabulary(self) -> Vocabulary | None:
        """The vocabulary that the bundle was exported with, or None. Raises BundleError where it is damaged."""
        if not self.bundle.has(VOCABULARY):
            return None
        try:
            manifest = self.bundle.manifest
            own = Vocabulary.read(self.bundle.file(VOCABULARY), graph=manifest.arch.has_graph, width=manifest.embed_dim)
            check_labels(own.labels)
            return replace(own, origin=self._cache.origin)
        except (LabelError, OSError, DamagedFileError) as error:
            raise BundleError(f"{error}; export the bundle again") from None

    def vocabulary(self, labels: str | Path | Iterable[str] | None = None) -> Vocabulary:
        """Labels, or a label file (one a line), with everything that scoring needs; cached, so a second call does no text work.

        None takes the vocabulary that the bundle was exported with. Raises LabelError for labels that cannot be used: an empty,
        repeated or overlong one, or one that a bundle without a text encoder has no embedding of.
        """
        if labels is not None:
            start = time.perf_counter()
            found = self._cache.vocabulary(read_labels(labels) if isinstance(labels, (str, Path)) else check_labels(labels))
            log.debug("%d labels ready in %.2f s", len(found), time.perf_counter() - start)
        elif self.bundled_vocabulary is not None:
            found = self.bundled_vocabulary
        else:
            raise LabelError(f"{self.bundle.path}: carries no vocabulary of its own; give a label file (--labels)")
        if len(found) < _FEW_LABELS and self.bundle.manifest.arch is not Arch.CLIP:
            _warn_of_few(len(found))
        return found

    def pixels(self, image: ImageSource) -> Pixels:
        """One picture (path, PIL image, array, file bytes; see `read_image`) → [3, H, W] as the bundle's contract says.

        They are fp32, or uint8 where the engine takes the last step, normalisation, itself; `score_pixels` takes both there.

        Raises ImageError where it cannot be read.
        """
        picture = read_image(image)
        try:
            return self._preprocess(picture)
        except ImageError as error:
            raise ImageError(f"{name_of(image)}: {error}") from None

    def features(self, pixels: Pixels, vocabulary: Vocabulary) -> Iterator[tuple[FloatArray | None, FloatArray]]:
        """pixels [B, 3, H, W] → each picture's local [P, D] (None where patches are not matched) and global [D] feature."""
        self._check(pixels, vocabulary)
        local, global_feature = self.engine.encode(pixels, vocabulary)
        for i, row in enumerate(global_feature):
            yield (None if local is None else local[i]), row

    def _check(self, pixels: Pixels, vocabulary: Vocabulary) -> None:
        side = self.bundle.manifest.image_size
        if not isinstance(pixels, np.ndarray):
            raise UsageError(f"pixels: is a {type(pixels).__name__}, expected an array; make it with recognizer.pixels(image)")
        if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side) or not len(pixels):
            raise UsageError(f"pixels: are {list(pixels.shape)}; expected [B, 3, {side}, {side}] of at least one picture")
        if pixels.dtype == np.uint8 and not self.engine.takes_uint8:
            raise UsageError("pixels: are uint8, which this engine does not take; make them with recognizer.pixels(image)")
        if pixels.dtype not in (np.uint8, np.float32):
            raise UsageError(f"pixels: are {pixels.dtype}, expected float32; make them with recognizer.pixels(image)")
        if not isinstance(vocabulary, Vocabulary):
            raise UsageError(f"vocabulary: is a {type(vocabulary).__name__}; make one with recognizer.vocabulary(labels)")
        if vocabulary.origin not in ("", self._cache.origin):
            raise UsageError(
                "vocabulary: was made by another bundle, whose scores it would mix up; make one with this recognizer"
            )

    def scores(self, images: Iterable[ImageSource], vocabulary: Vocabulary) -> FloatArray:
        """Scores [N, C] fp32 of every label, in the vocabulary's order.

        Raises ImageError where a picture cannot be read, ScoreError where its scores are no finite numbers.
        """
        rows = [self.score_pixels(self.pixels(image)[None], vocabulary) for image in _several(images)]
        return np.concatenate([np.zeros((0, len(vocabulary)), np.float32), *rows])

    def score_pixels(self, pixels: Pixels, vocabulary: Vocabulary) -> FloatArray:
        """pixels [B, 3, H, W] → scores [B, C] fp32. Raises ScoreError where one is no finite number."""
        self._check(pixels, vocabulary)
        scores = self.engine.score(pixels, vocabulary)
        matching.require_finite(scores, self.engine.precision.value)
        return scores

    def score_batches(self, batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[FloatArray]:
        """`score_pixels` of each batch, in order, but for the check that scores are finite.

        A GPU gets a batch while the one before it runs: scores of one come when the next was taken from `batches`.
        """

        def checked() -> Iterator[Pixels]:
            for pixels in batches:
                self._check(pixels, vocabulary)
                yield pixels

        return self.engine.score_batches(checked(), vocabulary)

    def recognize(
        self,
        images: Iterable[ImageSource],
        vocabulary: Vocabulary,
        *,
        top: int = 5,
        threshold: float | None = None,
        evidence: bool = False,
    ) -> list[list[Tag]]:
        """The best labels of every picture, best first: at most `top`, and none that scores below `threshold`.

        Raises ImageError for the first picture that cannot be read, and ScoreError for one whose scores are no finite numbers
        (`sigrl-deploy infer` goes on with the others), UsageError for `evidence` where the architecture matches no patches, and
        for a `top` below 1.
        """
        self._check_choice(top, threshold, evidence)
        found = []
        for image in _several(images):
            ((_, tags),) = self.tag_pixels(self.pixels(image)[None], vocabulary, top, threshold, evidence)
            found.append(tags)
        return found

    def tag_pixels(
        self,
        pixels: Pixels,
        vocabulary: Vocabulary,
        top: int = 5,
        threshold: float | None = None,
        evidence: bool = False,
    ) -> list[tuple[FloatArray, list[Tag]]]:
        """pixels [B, 3, H, W] → each picture's scores [C] fp32 and, as `recognize` gives them, its tags. Raises as it does."""
        (found,) = self.tag_batches([pixels], vocabulary, top, threshold, evidence)
        matching.require_finite(np.stack([scores for scores, _ in found]), self.engine.precision.value)
        return found

    def tag_batches(
        self,
        batches: Iterable[Pixels],
        vocabulary: Vocabulary,
        top: int = 5,
        threshold: float | None = None,
        evidence: bool = False,
    ) -> Iterator[list[tuple[FloatArray, list[Tag]]]]:
        """`tag_pixels` of each batch, in order, which `score_batches` scores: it does not ask whether scores are finite."""
        self._check_choice(top, threshold, evidence)
        if not evidence:
            for batch in self.score_batches(batches, vocabulary):
                yield [(scores, best_tags(scores, vocabulary, top, threshold)) for scores in batch]
            return
        for pixels in batches:
            yield [
                self._tags_with_evidence(*features, vocabulary, top, threshold)
                for features in self.features(pixels, vocabulary)
            ]

    def _tags_with_evidence(
        self,
        local: FloatArray | None,
        global_feature: FloatArray,
        vocabulary: Vocabulary,
        top: int,
        threshold: float | None,
    ) -> tuple[FloatArray, list[Tag]]:
        assert local is not None
        manifest = self.bundle.manifest
        scores = matching.score(manifest.arch, local, global_feature, vocabulary.label_embedding, manifest.topk)
        return scores, [self._with_evidence(tag, local, vocabulary) for tag in best_tags(scores, vocabulary, top, threshold)]

    def _check_choice(self, top: int, threshold: float | None, evidence: bool) -> None:
        if not isinstance(top, (int, np.integer)) or top < 1:
            raise UsageError(f"top is {top!r}, expected a whole number above 0")
        if threshold is not None and not (isinstance(threshold, (int, float, np.number)) and np.isfinite(threshold)):
            raise UsageError(f"threshold is {threshold!r}, expected a finite number or None")
        arch = self.bundle.manifest.arch
        if evidence and not arch.has_local:
            raise UsageError(f"evidence: {arch.value} scores whole pictures, so there is none by patch; leave evidence out")

    def _with_evidence(self, tag: Tag, local: FloatArray, vocabulary: Vocabulary) -> Tag:
        row = vocabulary.label_embedding[vocabulary.index(tag.label)][None]
        return Tag(tag.label, tag.score, matching.patch_similarity(local, row).reshape(self.bundle.manifest.grid))


@cache  # once is enough
def _warn_of_few(labels: int) -> None:
    many = f"{labels} label{'' if labels == 1 else 's'}"
    log.warning(
        "%s: scores compare the labels of one picture, and with so few even a wrong one may score high; "
        "add labels of other things that may be there, ten or more in all",
        many,
    )


def _several(images: Iterable[ImageSource]) -> Iterable[ImageSource]:
    """A lone picture is refused: a path would be read letter by letter, an array row by row."""
    if isinstance(images, (str, bytes, os.PathLike, Image.Image, np.ndarray)):
        raise UsageError(f"{name_of(images)}: is one picture, expected a list of pictures; put it in brackets")
    return images


def best_tags(scores: FloatArray, vocabulary: Vocabulary, top: int, threshold: float | None = None) -> list[Tag]:
    """scores [C] → at most `top` tags, best first, ties in the vocabulary's order."""
    order = np.argsort(-scores, kind="stable")[:top]
    return [Tag(vocabulary.labels[i], float(scores[i])) for i in order if threshold is None or scores[i] >= threshold]
