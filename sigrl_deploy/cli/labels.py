"""`sigrl-deploy labels`: label files and the vocabulary cache."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from sigrl_deploy.cli.options import (
    PATH,
    background_option,
    bundle_option,
    cache_option,
    engine_options,
    running_options,
    threads_option,
)


@click.group()
def labels() -> None:
    """Show label files; build, list and clear cached label embeddings."""


@labels.command()
@click.argument("labels", metavar="LABEL_FILE", type=PATH)
@background_option
@click.option("--json", "as_json", is_flag=True, help="Print the labels as a label file in JSON.")
def show(labels: Path, background: str | None, as_json: bool) -> None:
    """Show how LABEL_FILE is understood: labels, wordings, parents, thresholds, background. Needs no bundle."""
    import json

    from msgspec.structs import replace

    from sigrl_deploy.labels.reading import NAMED, read_label_set
    from sigrl_deploy.labels.schema import plain_of
    from sigrl_deploy.labels.shown import report

    found = read_label_set(labels)
    if background is not None:
        found = replace(found, background=background if background in NAMED else os.path.abspath(background))
    shown = report(found)  # which reads the background, so that JSON does not name one that cannot be used
    click.echo(json.dumps(plain_of(found), ensure_ascii=False, indent=2) if as_json else shown)


@labels.command()
@click.argument("labels", metavar="LABEL_FILE", type=PATH)
@background_option
@bundle_option
@running_options
@cache_option
@threads_option
def build(labels: Path, background: str | None, bundle: Path, cache_dir: Path | None, **options: Any) -> None:
    """Encode LABEL_FILE for a bundle and cache it, so that later runs need not."""
    from sigrl_deploy.labels.reading import read_label_set
    from sigrl_deploy.machine.cache_folder import default_cache_dir, require_writable
    from sigrl_deploy.recognizer import Recognizer
    from sigrl_deploy.recognizer.vocabularies import asked_labels

    given = read_label_set(labels)
    require_writable(cache_dir or default_cache_dir())
    with Recognizer(bundle, cache_dir=cache_dir, options=engine_options(options)) as recognizer:
        vocabulary = recognizer.vocabulary(asked_labels(given, background, recognizer.vocabulary))
        rows = len(vocabulary.label_embedding)
        click.echo(f"{len(vocabulary)} labels ready" + ("" if rows == len(vocabulary) else f", {rows} rows with all others"))


@labels.command("list")
@cache_option
def list_(cache_dir: Path | None) -> None:
    """Show what is cached, by bundle: kind, number of labels, size, first labels."""
    from sigrl_deploy.errors import printable
    from sigrl_deploy.machine.cache_folder import about, cached_files, default_cache_dir

    folder = cache_dir or default_cache_dir()
    if not os.path.isdir(folder):
        click.echo(f"{folder}: nothing is cached here")
        return
    click.echo(f"{folder}:")
    for side, files in groupby(cached_files(folder), lambda file: file.path.parent):
        click.echo(f"  {printable(about(side) or side.name)}")
        for file in files:
            shown = printable(", ".join(file.labels[:3])) + (", …" if len(file.labels) > 3 else "")
            size = max(1, round(file.path.stat().st_size / 1e3))
            click.echo(f"    {file.kind:<10}  {len(file.labels):>6} labels  {size:>9,} kB  {shown}")


@labels.command()
@cache_option
def clear(cache_dir: Path | None) -> None:
    """Remove every cached label embedding and vocabulary."""
    from sigrl_deploy.machine.cache_folder import clear_cache, default_cache_dir

    folder = cache_dir or default_cache_dir()
    click.echo(f"{clear_cache(folder)} files removed from {folder}")
