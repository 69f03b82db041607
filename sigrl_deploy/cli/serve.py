"""`sigrl-deploy serve`."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from sigrl_deploy.cli.options import (
    PATH,
    bundle_option,
    cache_option,
    check_finite,
    engine_options,
    running_options,
    threads_option,
)
from sigrl_deploy.errors import UsageError
from sigrl_deploy.serve.limits import MB, Limits


def _seconds(what: str, default: float, text: str) -> Callable[[Any], Any]:
    return click.option(f"--{what}-seconds", type=click.FloatRange(0.01, 3600), default=default, show_default=True, help=text)


@click.command()
@bundle_option
@click.option(
    "--labels",
    "labels",
    multiple=True,
    metavar="NAME=FILE",
    help="A vocabulary from a label file; repeatable, the first is the default [default: the bundle's own labels, as bundle].",
)
@click.option(
    "--thresholds", multiple=True, metavar="NAME=FILE", help="Thresholds, from calibrate, for a vocabulary; repeatable."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 lets the network in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one.")
@click.option("--api-key-file", type=PATH, help="File whose first line is a key that requests must bring as a bearer token.")
@click.option("--access-log", is_flag=True, help="Write a line of JSON for each request to standard output.")
@click.option(
    "--body-mb",
    type=click.FloatRange(0.001, 1024),
    default=Limits.body_bytes / MB,
    show_default=True,
    help="Largest body of a request.",
)
@click.option(
    "--in-flight-mb",
    type=click.FloatRange(0.001),
    default=Limits.bytes_in_flight / MB,
    show_default=True,
    help="Largest sum of all bodies.",
)
@click.option(
    "--queue", type=click.IntRange(1, 100_000), default=Limits.queue, show_default=True, help="Most pictures that wait."
)
@_seconds("header", Limits.header_seconds, "Close connections whose headers take longer.")
@_seconds("body", Limits.body_seconds, "Refuse bodies that take longer.")
@_seconds("answer", Limits.answer_seconds, "Give up on a picture after so long.")
@running_options
@cache_option
@threads_option
def serve(labels: tuple[str, ...], thresholds: tuple[str, ...], **options: Any) -> None:
    """Serve a bundle over HTTP: POST a picture to /v1/tag, or open the address in a browser."""
    from sigrl_deploy.extras import require

    require("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client", extra="serve")
    from sigrl_deploy.serve.run import ServeOptions, run_serve

    options |= {"labels": _pairs(labels, "labels"), "thresholds": _pairs(thresholds, "thresholds")}
    options["limits"] = _limits(options)
    _exit(run_serve(ServeOptions(engine=engine_options(options), **options)))


def _exit(status: int) -> NoReturn:
    if threading.active_count() == 1:
        raise SystemExit(status)
    # An engine hangs. What the interpreter tears down at its end would crash under it.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _limits(options: dict[str, Any]) -> Limits:
    """Take what bounds the service out of the options. Raises UsageError for numbers that make no sense."""
    check_finite(options, "body_mb", "in_flight_mb")
    body, in_flight = options.pop("body_mb"), options.pop("in_flight_mb")
    if in_flight < body:
        raise UsageError(f"is less than one body may have, {body:g}; raise it", argument="in_flight_mb", value=f"{in_flight:g}")
    others = {name: options.pop(name) for name in ("queue", "header_seconds", "body_seconds", "answer_seconds")}
    return Limits(body_bytes=int(body * MB), bytes_in_flight=int(in_flight * MB), **others)


def _pairs(values: tuple[str, ...], option: str) -> dict[str, Path]:
    """`NAME=FILE` → the file of each name. Raises UsageError."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            raise UsageError("expected NAME=FILE, such as kitchen=kitchen.txt", argument=option, value=value)
        if name in found:
            raise UsageError(f"names {name} twice; leave out one of the two", argument=option, value=value)
        found[name] = Path(path)
    return found
