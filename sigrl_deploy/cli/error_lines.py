"""Errors and log lines as the command line prints them: with options of the verb that runs, where Python names arguments."""

from __future__ import annotations

import logging
import re

import click

from sigrl_deploy.errors import SigRLError, printable

_ARGUMENT = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")  # how messages name an argument; see `sigrl_deploy.errors`


def error_line(error: SigRLError, verb: click.Command | None) -> str:
    """One line, safe on a terminal. `verb` is None where none ran yet."""
    line = with_options(error.problem, verb)
    if error.argument:
        line = f"{_option(error.argument, None if error.value is None else str(error.value), verb)}: {line}"
    return printable(line)


class LogLines(logging.Formatter):
    """Log lines with the options of the verb that runs."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.name.partition(".")[0] != "sigrl_deploy":  # other packages use backticks too
            return line
        context = click.get_current_context(silent=True)
        return with_options(line, context.command if context else None)


def with_options(text: str, verb: click.Command | None) -> str:
    """A message with each argument in backticks replaced by the verb's option; what the verb does not have stays."""

    def option(match: re.Match[str]) -> str:
        known = verb is None or _parameter(match[1], verb) is not None
        return _option(match[1], match[2] and match[2].strip("(),'\""), verb) if known else match[0]

    return _ARGUMENT.sub(option, text)


def _parameter(name: str, verb: click.Command | None) -> click.Parameter | None:
    parameters = {parameter.name: parameter for parameter in (verb.params if verb else [])}
    return parameters.get(name) or parameters.get(f"{name}s")


def _option(name: str, value: str | None, verb: click.Command | None) -> str:
    parameter = _parameter(name, verb)
    if isinstance(parameter, click.Argument):
        return value or parameter.make_metavar(click.Context(verb or click.Command(""))).strip("[].")
    flag = max(parameter.opts, key=len) if parameter else f"--{name.replace('_', '-')}"
    takes_value = value and not getattr(parameter, "is_flag", False)
    return f"{flag} {value}" if takes_value else flag
