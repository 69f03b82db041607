"""The command line: one file a verb, thin functions. Heavy imports stay inside them, so that --help answers at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

import click

from sigrl_deploy.cli.demo import demo
from sigrl_deploy.cli.doctor import doctor
from sigrl_deploy.cli.evaluate import evaluate
from sigrl_deploy.cli.export import export
from sigrl_deploy.cli.infer import infer
from sigrl_deploy.cli.labels import labels
from sigrl_deploy.cli.train import train
from sigrl_deploy.cli.verify import verify
from sigrl_deploy.errors import SigRLError, printable
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
            if _speaks():
                click.echo(f"error: {printable(str(error))}", err=True)
            code = error.exit_code
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            code = _INTERRUPTED
        except BrokenPipeError:
            code = _CLOSED_PIPE
        _flush_or_discard()
        raise click.exceptions.Exit(code)


def _speaks() -> bool:
    """Whether this process is the one to say something, where several train on a device each."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


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
    used; 3 a bundle, checkpoint or export failed, or verify did; 130 interrupted; 141 nobody read standard output any more.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO if _speaks() else logging.CRITICAL)


for verb in (demo, infer, labels, evaluate, train, export, doctor, verify):
    main.add_command(verb)
