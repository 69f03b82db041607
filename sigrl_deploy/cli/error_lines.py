"""An error as the command line prints it: with the options of the verb that ran, where Python code names its arguments."""

from __future__ import annotations

import re

import click

from sigrl_deploy.errors import SigRLError, printable

_ARGUMENT = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")  # how messages name an argument; see `sigrl_deploy.errors`


def error_line(error: SigRLError, verb: click.Command | None) -> str:
    """One line, safe on a terminal. `verb` is None where none ran yet."""
    parameters = {parameter.name: parameter for parameter in (verb.params if verb else [])}

    def option(name: str, value: str | None) -> str:
        parameter = parameters.get(name) or parameters.get(f"{name}s")
        if isinstance(parameter, click.Argument):
            return value or parameter.make_metavar(click.Context(verb or click.Command(""))).strip("[].")
        flag = max(parameter.opts, key=len) if parameter else f"--{name.replace('_', '-')}"
        takes_value = value and not getattr(parameter, "is_flag", False)
        return f"{flag} {value}" if takes_value else flag

    line = _ARGUMENT.sub(lambda match: option(match[1], match[2] and match[2].strip("'\"")), error.problem)
    if error.argument:
        line = f"{option(error.argument, None if error.value is None else str(error.value))}: {line}"
    return printable(line)
