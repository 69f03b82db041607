"""The command line: one file per verb, thin functions. They import what is heavy, so that --help answers at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

import click

from sigrl_deploy.cli.bulk import bulk
from sigrl_deploy.cli.calibrate import calibrate
from sigrl_deploy.cli.demo import demo
from sigrl_deploy.cli.doctor import doctor
from sigrl_deploy.cli.error_lines import LogLines, error_line
from sigrl_deploy.cli.evaluate import evaluate
from sigrl_deploy.cli.export import export
from sigrl_deploy.cli.infer import infer
from sigrl_deploy.cli.interrupts import Interrupted, interruptible
from sigrl_deploy.cli.labels import labels
from sigrl_deploy.cli.options import quiet_option, verbose_option
from sigrl_deploy.cli.serve import serve
from sigrl_deploy.cli.train import train
from sigrl_deploy.cli.verify import verify
from sigrl_deploy.errors import SigRLError
from sigrl_deploy.version import __version__

log = logging.getLogger("sigrl_deploy")

_CLOSED_PIPE = 141  # what a shell reports for a program that SIGPIPE ended


class _Group(click.Group):
    """Prints errors raised on purpose as one line and exits with their code; only bugs show a traceback."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        _log_to_stderr()
        with _errors_in_one_line():
            return super().make_context(*args, **extra)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogLines())
    logging.basicConfig(handlers=[handler])
    log.setLevel(logging.INFO if _prints() else logging.CRITICAL)


@contextmanager
def _errors_in_one_line(verb: click.Command | None = None) -> Iterator[None]:
    try:
        with interruptible():
            yield
        return
    except SigRLError as error:
        if _prints():
            click.echo(f"error: {error_line(error, verb)}", err=True)
        code = error.exit_code
    except Interrupted as error:
        with suppress(OSError):  # the terminal may be gone
            click.echo(str(error), err=True)
        code = error.exit_code
    except BrokenPipeError:
        code = _CLOSED_PIPE
    _flush_or_discard()
    raise click.exceptions.Exit(code)


def _prints() -> bool:
    """Whether this process prints, where several train together, each on its own device."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


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
@quiet_option
@verbose_option
def main() -> None:
    """Open-vocabulary image tagging with SigRL, exported to ONNX.

    \b
    Exit status: 0 done; 1 done, but some pictures could not be read; 2 an argument, or a file that it names, cannot
    be used; 3 a bundle, checkpoint or export failed, or verify found too large an error; 130 interrupted; 141 nobody
    reads standard output any more; 143 terminated.
    """


def _complete(command: click.Command) -> None:
    """Give every verb the group's options, which people write in either place, and print its errors as one line."""
    if isinstance(command, click.Group):
        for verb in command.commands.values():
            _complete(verb)
        return
    quiet_option(command)
    verbose_option(command)
    run = command.callback
    assert run is not None

    @wraps(run)
    def explained(*arguments: Any, **options: Any) -> Any:
        with _errors_in_one_line(command):
            return run(*arguments, **options)

    command.callback = explained


for verb in (demo, infer, bulk, labels, calibrate, evaluate, train, export, serve, doctor, verify):
    _complete(verb)
    main.add_command(verb)


def run_verb(path: Sequence[str], arguments: Sequence[str], program: str) -> None:
    """Run the verb that `path` names, as a program of its own where it names one, and exit."""
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    if path:
        _log_to_stderr()
    command.main(list(arguments), prog_name=program, **main.context_settings)
