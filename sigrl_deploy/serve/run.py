"""One run of `sigrl-deploy serve`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import read_bounded
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.thresholds import Thresholds
from sigrl_deploy.serve.app import Service, make_app
from sigrl_deploy.serve.bodies import Admission
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.server import Server
from sigrl_deploy.serve.tagger import Tagger
from sigrl_deploy.serve.vocabularies import ServedVocabularies
from sigrl_deploy.version import __version__

log = logging.getLogger(__name__)

OWN = "bundle"  # the name of the bundle's own labels
_DIED = 3  # exit status where the engine failed
_MB = 1_000_000


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
    body_mb: float = 20
    in_flight_mb: float = 256
    queue: int = 256
    answer_seconds: float = 30
    cache_dir: Path | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)

    @property
    def limits(self) -> Limits:
        return Limits(
            body_bytes=int(self.body_mb * _MB),
            bytes_in_flight=int(max(self.in_flight_mb, self.body_mb) * _MB),
            queue=self.queue,
            answer_seconds=self.answer_seconds,
        )


def run_serve(options: ServeOptions) -> int:
    """Serve until a signal comes or the engine dies. Returns the exit status.

    Raises UsageError, LabelError and BundleError for what cannot be served, before it listens.
    """
    key = None if options.api_key_file is None else read_key(options.api_key_file)
    given = {name: read_label_set(path) for name, path in options.labels.items()}
    thresholds = {name: Thresholds.read(path) for name, path in options.thresholds.items()}
    # One thread a session: workers share the cores, which takes half the CPU time of one picture on all of them.
    engine = replace(options.engine, threads=1)
    with Recognizer(options.bundle, cache_dir=options.cache_dir, options=engine) as recognizer:
        own = recognizer.own_labels
        if not given and own is None:
            raise UsageError("the bundle has no labels of its own; give some, such as everyday=labels.txt", argument="labels")
        service = _service(options, recognizer, key)
        service.vocabularies.open(given, thresholds)
        return _run(options, service)
