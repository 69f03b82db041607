"""One run of `sigrl-deploy serve`."""

from __future__ import annotations

import asyncio
import io
import logging
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from sigrl_deploy.engines.opening import open_engine
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import BundleError, UsageError
from sigrl_deploy.files import read_bounded
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.machine import cpus
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.pipeline import Pipeline
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.recognizer.thresholds import Thresholds
from sigrl_deploy.serve.app import Service, make_app
from sigrl_deploy.serve.bodies import Admission
from sigrl_deploy.serve.errors import TooLateError
from sigrl_deploy.serve.guard import log_access
from sigrl_deploy.serve.jobs import line_of
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.server import Server, bound, is_loopback
from sigrl_deploy.serve.tagger import Plan, Tagger
from sigrl_deploy.serve.vocabularies import ServedVocabularies
from sigrl_deploy.version import __version__
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_DIED = 3  # exit status where the engine failed
_INTERRUPTED = 128 + signal.SIGINT
_MOST_KEY_BYTES = 4096


@dataclass(frozen=True)
class ServeOptions:
    """What is served, where, and within which bounds; `labels` and `thresholds` are files by the name of a vocabulary."""

    bundle: Path
    labels: Mapping[str, Path] = field(default_factory=dict)
    thresholds: Mapping[str, Path] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    access_log: bool = False
    limits: Limits = field(default_factory=Limits)
    cache_dir: Path | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)


def run_serve(options: ServeOptions) -> int:
    """Serve until a signal comes or the engine dies. Returns the exit status.

    Raises UsageError, LabelError and BundleError for what cannot be served, before it listens.
    """
    key = None if options.api_key_file is None else read_key(options.api_key_file)
    given = {name: read_label_set(path) for name, path in options.labels.items()}
    thresholds = {name: Thresholds.read(path) for name, path in options.thresholds.items()}
    log_access(sys.stdout if options.access_log else None)
    # A thread for each picture takes less CPU time than one picture on all cores.
    engine = replace(options.engine, threads=1)
    with (
        bound(options.host, options.port) as opened,
        Recognizer(options.bundle, cache_dir=options.cache_dir, options=engine) as recognizer,
    ):
        if key is None and not is_loopback(opened):
            log.warning("whoever reaches `host=%s` can use the service; give it `api_key_file`", options.host)
        metrics = Metrics()
        vocabularies = ServedVocabularies(recognizer, options.limits, metrics)
        vocabularies.open(given, thresholds)
        return _run(options, recognizer, vocabularies, metrics, key, opened)


def read_key(path: Path) -> str:
    """The first line of a file. Raises UsageError where it cannot be read or has no line of plain ASCII text."""
    try:
        line = read_bounded(path, _MOST_KEY_BYTES).split(b"\n")[0].strip()
        key = line.decode("ascii")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot be read ({reason})", argument="api_key_file", value=path) from None
    if not key.isprintable() or not key:
        problem = "its first line is no key; expected printable ASCII characters"
        raise UsageError(problem, argument="api_key_file", value=path)
    return key


def _run(
    options: ServeOptions,
    recognizer: Recognizer,
    vocabularies: ServedVocabularies,
    metrics: Metrics,
    key: str | None,
    opened: socket.socket,
) -> int:
    limits, died = options.limits, list[BaseException]()

    def on_death(cause: BaseException) -> None:  # from a worker's thread
        died.append(cause)
        server.end_soon()

    threads = options.engine.threads or cpus.threads()
    alone = _on_all_cores(recognizer, replace(options.engine, threads=threads))
    first = _First.of(vocabularies)
    if first is not None:
        first.run(recognizer, alone)
    tagger = Tagger(recognizer, limits, metrics, on_death, Plan.of(recognizer, threads), alone)
    admission, local = Admission(limits.bytes_in_flight), is_loopback(opened)
    service = Service(tagger, vocabularies, limits, metrics, admission, _info(recognizer), key, local)
    server = Server(make_app(service), limits)

    async def serve() -> None:
        tagger.start()
        if first is not None:
            await first.tag(tagger)
        await server.serve([opened])
        if not server.force_exit:
            await tagger.drain(limits.drain_seconds)
        vocabularies.close()

    asyncio.run(serve())
    if died:
        log.error("the engine failed, so the service ends: %s", line_of(died[0]))
        return _DIED
    return _INTERRUPTED if server.force_exit else 0


@dataclass(frozen=True)
class _First:
    """A picture that is tagged before the service listens.

    The first one is slower, and an engine that fails at it is better known before anybody waits.
    """

    picture: bytes
    vocabulary: Vocabulary
    selection: Selection

    @classmethod
    def of(cls, vocabularies: ServedVocabularies) -> _First | None:
        """None where there are no labels yet."""
        served = vocabularies.named()
        return None if served is None else cls(_grey_picture(), served.vocabulary, vocabularies.selection(served))

    def run(self, recognizer: Recognizer, alone: Pipeline | None) -> None:
        """Run it. Raises BundleError where that fails."""
        view = recognizer.view(self.picture)
        for pipeline in (recognizer.pipeline, alone):
            try:
                if pipeline is not None:
                    pipeline.tag([view], self.vocabulary, [self.selection])
            except Exception as error:
                remedy = "take another `backend` or `precision`, or export the bundle again"
                raise BundleError(f"{recognizer.bundle.path}: fails at a picture ({line_of(error)}); {remedy}") from error

    async def tag(self, tagger: Tagger) -> None:
        """Tag it as any other: the tagger then has a picture that is known to work. It may take longer than others may."""
        with suppress(TooLateError):
            await tagger.tag(self.picture, self.vocabulary, self.selection)


def _on_all_cores(recognizer: Recognizer, options: EngineOptions) -> Pipeline | None:
    """The recognizer's model on so many threads of the CPU; None on a GPU or for one thread."""
    if recognizer.engine.device != "cpu" or options.threads == 1:
        return None
    return Pipeline(recognizer.bundle.manifest, open_engine(recognizer.bundle, options))


def _grey_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    return file.getvalue()


def _info(recognizer: Recognizer) -> dict[str, Any]:
    manifest = recognizer.bundle.manifest
    return {
        "name": "sigrl-deploy",
        "version": __version__,
        "bundle": {
            "arch": manifest.arch.value,
            "image_size": manifest.image_size,
            "template": manifest.template,
            "created": manifest.created,
        },
        "engine": recognizer.engine.description,
        "heatmaps": manifest.arch.has_places,
        "probabilities": manifest.arch.gives_probabilities,
        "open_labels": manifest.context_length is not None,
    }
