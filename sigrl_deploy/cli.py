"""The command line: one thin function a verb. Heavy imports stay inside the functions, so that --help answers at once."""

from __future__ import annotations

import io
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.errors import SigRLError, UsageError, printable
from sigrl_deploy.version import __version__

log = logging.getLogger("sigrl_deploy")

_INTERRUPTED = 130
_CLOSED_PIPE = 141  # what a shell reports for a program that SIGPIPE ended


class _Group(click.Group):
    """Prints our errors as one line and exits with their code; a traceback is left to bugs."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SigRLError as error:
            click.echo(f"error: {printable(str(error))}", err=True)
            code = error.exit_code
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            code = _INTERRUPTED
        except BrokenPipeError:
            code = _CLOSED_PIPE
        _flush_or_discard()
        raise click.exceptions.Exit(code)


def _terminate(number: int, _: object) -> None:
    # An exception, so that temporary files are removed on the way out.
    raise SystemExit(128 + number)


def _flush_or_discard() -> None:
    # What the interpreter cannot flush when it exits, it reports with a traceback.
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sigrl-deploy")
def main() -> None:
    """Open-vocabulary image tagging with SigRL, exported to ONNX.

    \b
    Exit status: 0 done; 1 done, but some pictures could not be read; 2 an argument or a file that it names cannot be
    used; 3 a bundle, checkpoint or export failed; 130 interrupted; 141 nobody read standard output any more.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)


_PATH = click.Path(path_type=Path)
_bundle_option = click.option("--bundle", type=_PATH, required=True, help="Folder that the export wrote.")
_device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: a GPU where there is one.",
)
_cache_option = click.option(
    "--cache-dir", type=_PATH, help="Where label embeddings are kept [default: $SIGRL_DEPLOY_CACHE or the user's cache folder]."
)


@main.command()
@click.argument("pictures", nargs=-1, required=True)
@_bundle_option
@click.option("--labels", type=_PATH, help="Label file, one a line [default: the vocabulary in the bundle].")
@click.option("--top", type=click.IntRange(min=1), help="At most so many labels a picture [default: 5].")
@click.option("--threshold", type=float, help="No label that scores below this; it holds for one vocabulary only.")
@click.option(
    "--scores", type=click.Choice(["top", "all"]), default="top", help="all: every label's score, in the file's order."
)
@click.option(
    "--format", "format_", type=click.Choice(["table", "json", "jsonl", "csv"]), help="[default: by --out's ending, or table]"
)
@click.option("--out", type=_PATH, help="Write to a file instead of standard output.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of --format jsonl --out FILE.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Pictures at once [default: 1 on a CPU, 16 on a GPU].")
@_device_option
@_cache_option
def infer(
    pictures: tuple[str, ...],
    bundle: Path,
    labels: Path | None,
    top: int | None,
    threshold: float | None,
    scores: str,
    format_: str | None,
    out: Path | None,
    resume: bool,
    batch_size: int | None,
    device: str,
    cache_dir: Path | None,
) -> None:
    """Tag PICTURES: files, folders (recursively), globs, or - for a list on standard input."""
    from sigrl_deploy.infer import InferOptions, run_infer
    from sigrl_deploy.inputs import find_pictures

    if scores == "all" and (top is not None or threshold is not None):
        raise UsageError("--scores all: gives every label, so leave out --top and --threshold")
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold {threshold}: expected a finite number, such as 0.02")
    options = InferOptions(
        pictures=find_pictures(pictures, sys.stdin.buffer if sys.stdin else io.BytesIO()),
        bundle=bundle,
        labels=labels,
        top=top or 5,
        threshold=threshold,
        all_scores=scores == "all",
        format=format_,
        out=out,
        resume=resume,
        batch_size=batch_size,
        device=device,
        cache_dir=cache_dir,
    )
    failed = run_infer(options)
    if failed:
        log.error("%d picture%s could not be read; the records say why", failed, "" if failed == 1 else "s")
        raise SystemExit(1)


@main.group()
def labels() -> None:
    """Build, list and clear cached vocabularies."""


@labels.command()
@click.argument("label_file", type=_PATH)
@_bundle_option
@_device_option
@_cache_option
def build(label_file: Path, bundle: Path, device: str, cache_dir: Path | None) -> None:
    """Encode LABEL_FILE for a bundle and cache it, so that later runs do no text work."""
    from sigrl_deploy.cache import default_cache_dir, require_writable
    from sigrl_deploy.recognizer import Recognizer

    require_writable(cache_dir or default_cache_dir())
    vocabulary = Recognizer(bundle, device=device, cache_dir=cache_dir).vocabulary(label_file)
    click.echo(f"{len(vocabulary)} labels ready")


@labels.command("list")
@_cache_option
def list_(cache_dir: Path | None) -> None:
    """Show what is cached: kind, number of labels, size, first labels."""
    from sigrl_deploy.cache import cached_files, default_cache_dir

    folder = cache_dir or default_cache_dir()
    click.echo(f"{folder}:")
    for file in cached_files(folder):
        shown = ", ".join(file.labels[:3]) + (", …" if len(file.labels) > 3 else "")
        size = file.path.stat().st_size / 1e6
        click.echo(f"  {file.kind:<10}  {len(file.labels):>6} labels  {size:8.1f} MB  {shown}")


@labels.command()
@_cache_option
def clear(cache_dir: Path | None) -> None:
    """Remove every cached label embedding and vocabulary."""
    from sigrl_deploy.cache import clear_cache, default_cache_dir

    folder = cache_dir or default_cache_dir()
    click.echo(f"{clear_cache(folder)} files removed from {folder}")


@main.group()
def export() -> None:
    """Turn a trained checkpoint into a bundle."""


def _values(enum: type[Arch] | type[Precision]) -> click.Choice[str]:
    return click.Choice([member.value for member in enum])


_EXPORT_OPTIONS = [
    click.argument("checkpoint", type=_PATH),
    click.option("--out", type=_PATH, required=True, help="Folder to write."),
    click.option("--text-tower", help="CLIP text tower: a file, or NAME:PRETRAINED as open_clip lists them (ViT-B-16:openai)."),
    click.option("--labels", type=_PATH, help="Put this vocabulary into the bundle."),
    click.option("--label-embeddings", type=_PATH, help="Saved embeddings [C, D] of --labels, in place of a text tower."),
    click.option("--arch", type=_values(Arch), help="[default: what the checkpoint's tensors say]"),
    click.option(
        "--clip-config",
        help="open_clip config (a name or a .json file) of a CLIP model that is not OpenAI's [default: openai, or that of "
        "--text-tower NAME:PRETRAINED].",
    ),
    click.option(
        "--precision", type=_values(Precision), default="fp32", show_default=True, help="dtype of the exported graphs."
    ),
    click.option("--topk", type=int, help="Patches that the local match averages [default: 16; 18 for mkt]."),
    click.option(
        "--preprocess",
        type=click.Choice(["zero-shot", "single-positive", "clip"]),
        help="How pictures were prepared in training [default: zero-shot; clip for --arch clip].",
    ),
    click.option("--template", help="Prompt with {label} in it [default: the architecture's]."),
    click.option("--tolerance", type=float, help="Largest score error [default: 1e-4 fp32, 5e-3 fp16, 3e-2 bf16]."),
    click.option("--force", is_flag=True, help="Replace the bundle at --out, never anything else."),
]


def _export_options(function: Callable[..., None]) -> Callable[..., None]:
    for decorate in reversed(_EXPORT_OPTIONS):
        function = decorate(function)
    return function


@export.command("onnx")
@_export_options
def export_onnx(**options: Any) -> None:
    """Export CHECKPOINT to a bundle: visual.onnx, text.onnx, tokenizer and manifest, measured against the eager model."""
    try:
        from sigrl_deploy.export.bundle import ExportOptions, export_bundle
        from sigrl_deploy.preprocess import Contract
    except ModuleNotFoundError as error:
        raise UsageError(
            f"export needs {error.name}; install the extra export: pip install '.[export]' in a checkout"
        ) from None
    for name, enum in (("arch", Arch), ("precision", Precision), ("preprocess", Contract)):
        options[name] = options[name] and enum(options[name])
    parity = export_bundle(ExportOptions(**options))
    measured = f"largest score error {parity.largest_error:.1e} (tolerance {parity.tolerance:g})"
    click.echo(f"{options['out']}: exported; {measured}, {parity.backend}")
