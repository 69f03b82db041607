"""One run of `sigrl-deploy serve`."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from PIL import Image

from sigrl_deploy.engines.opening import open_engine
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import read_bounded
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.machine import cpus
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.pipeline import Pipeline
from sigrl_deploy.recognizer.thresholds import Thresholds
from sigrl_deploy.serve.app import Service, make_app
from sigrl_deploy.serve.bodies import Admission
from sigrl_deploy.serve.guard import log_access
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.server import Server
from sigrl_deploy.serve.tagger import Plan, Tagger
from sigrl_deploy.serve.vocabularies import ServedVocabularies
from sigrl_deploy.version import __version__

log = logging.getLogger(__name__)

_DIED = 3  # exit status where the engine failed
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
    with Recognizer(options.bundle, cache_dir=options.cache_dir, options=engine) as recognizer:
        metrics = Metrics()
        vocabularies = ServedVocabularies(recognizer, options.limits, metrics)
        vocabularies.open(given, thresholds)
        return _run(options, recognizer, vocabularies, metrics, key)


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
    options: ServeOptions, recognizer: Recognizer, vocabularies: ServedVocabularies, metrics: Metrics, key: str | None
) -> int:
    limits, died = options.limits, list[BaseException]()

    def on_death(cause: BaseException) -> None:  # from a worker's thread
        died.append(cause)
        server.should_exit = True

    threads = options.engine.threads or cpus.threads()
    alone = _on_all_cores(recognizer, replace(options.engine, threads=threads))
    tagger = Tagger(recognizer, limits, metrics, on_death, Plan.of(recognizer, threads), alone)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tagger.start()
        if (served := vocabularies.named()) is not None:
            # The first picture is slower, and an engine that fails at it is better known before anybody waits.
            grey = _grey_picture(), served.vocabulary, vocabularies.selection(served)
            await asyncio.gather(tagger.tag(*grey), tagger.tag(*grey))
            await tagger.tag(*grey)  # alone
        yield
        await tagger.drain(limits.drain_seconds)
        vocabularies.close()

    service = Service(tagger, vocabularies, limits, metrics, Admission(limits.bytes_in_flight), _info(recognizer), key)
    server = Server(make_app(service, lifespan), options.host, options.port, limits)
    server.run()
    if died:
        log.error("the engine failed, so the service ends: %s", died[0])
        return _DIED
    return 0


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
        "open_labels": manifest.context_length is not None,
    }
