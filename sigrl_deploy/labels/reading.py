"""Label files: lines, TOML, JSON and CSV, by the ending of their names."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.csv_files import parse_csv
from sigrl_deploy.labels.label_set import Label, LabelSet
from sigrl_deploy.labels.names import decoded, read_bytes, read_labels
from sigrl_deploy.labels.schema import Repeated, label_set_from_plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMED = ("bundle", "common")  # backgrounds that are no files
_Error = Callable[[str], LabelError]

_YAML = "write the labels in a .toml or .json file: YAML takes the label no for false, and 1.5 for a number"
_SHEET = "save the sheet as CSV in UTF-8"
_REFUSED = {
    ".md": "write the labels as lines of a .txt file",
    ".yaml": _YAML,
    ".yml": _YAML,
    ".xlsx": _SHEET,
    ".xls": _SHEET,
    ".ods": _SHEET,
}
_MOST_KEY_PARTS = 8  # of a dotted key in TOML; tomllib's time grows with the square of their number
# Strings and comments of TOML, in which dots mean nothing. One that does not end is taken too, which keeps the time linear.
_QUOTED = re.compile(
    r'"""(?:\\.|[^\\]|\\\Z)*?(?:"""|\Z)' r"|'''.*?(?:'''|\Z)" r'|"(?:\\.|[^"\\\n])*"?' r"|'[^'\n]*'?" r"|#[^\n]*", re.DOTALL
)
_LONG_KEY = re.compile(rf"(?<![\w-])(?:[\w-]+[ \t]*\.[ \t]*){{{_MOST_KEY_PARTS}}}")
_TOML_PLACE = re.compile(r"(?s)(.*) \(at (line \d+, column \d+|end of document)\)")


def read_label_set(path: str | Path, argument: str = "labels") -> LabelSet:
    """The label set of a UTF-8 file: .toml, .json or .csv by its ending, whose case does not matter, else one label a line.

    A background that is a file is given by its path relative to the label file, and becomes absolute.

    Raises LabelError, of one line, with the line number or the key, where the file cannot be read, is not of its format, or
    holds what `check_label_set` refuses, and for a background file that does not exist; `argument` is the one that named the
    file.
    """

    def error(problem: str) -> LabelError:
        return LabelError(problem, argument=argument, value=path)

    ending = os.path.splitext(path)[1].lower()
    if ending in _REFUSED:
        raise error(f"{ending} is no format of label files, which end in .txt, .toml, .json or .csv; {_REFUSED[ending]}")
    if ending == ".csv":
        return parse_csv(_read_text(path, error), error)
    if ending not in _PARSERS:
        return LabelSet(tuple(map(Label, read_labels(path, argument))))
    return _with_absolute_background(parse_label_set(_read_text(path, error), ending, error), Path(path).parent, error)


def parse_label_set(text: str, ending: str, error: Callable[[str], LabelError]) -> LabelSet:
    """The label set of a text in the format of an ending, ".toml" or ".json". Its background is as it was given.

    `error` makes an exception of a problem, which is raised where the text is not of its format, and for what
    `label_set_from_plain` refuses.
    """
    try:
        values = _PARSERS[ending](text, error)
    except RecursionError:
        raise error("lists or objects are nested too deeply; expected labels with lists of texts") from None
    except ValueError:  # int() has a limit
        raise error("a number has thousands of digits; expected numbers such as 0.25") from None
    return label_set_from_plain(values, error)


def read_names(path: str | Path, argument: str = "labels") -> tuple[str, ...]:
    """The labels of a file of any format that says no more than names.

    Raises LabelError as `read_label_set` does, and where the file says more, which would be lost.
    """
    found = read_label_set(path, argument)
    if not found.is_plain:
        problem = "says more than names, and nothing but names is kept here; write the names into a .txt file, one a line"
        raise LabelError(problem, argument=argument, value=path)
    return found.names


def _read_text(path: str | Path, error: _Error) -> str:
    lines = read_bytes(path, error).splitlines(keepends=True)
    return "".join(decoded(line, number, error) for number, line in enumerate(lines, start=1))


def _parse_toml(text: str, error: _Error) -> object:
    if long := _LONG_KEY.search(_QUOTED.sub("_", text)):
        raise error(f"the key {long[0][:40]!r}… has more than {_MOST_KEY_PARTS} parts; expected names without dots")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        found = _TOML_PLACE.fullmatch(str(problem))
        place = f"{found[2].replace('end of document', 'end of the file')}: " if found else ""
        raise error(f"{place}{found[1] if found else problem}; expected TOML") from None


def _parse_json(text: str, error: _Error) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno}, column {problem.colno}"
        raise error(f"{place}: {problem.msg}; expected JSON") from None


_PARSERS: dict[str, Callable[[str, _Error], object]] = {".toml": _parse_toml, ".json": _parse_json}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    counts = Counter(key for key, _ in pairs)
    return Repeated(values, counts.most_common(1)[0][0])


def _with_absolute_background(labels: LabelSet, folder: Path, error: _Error) -> LabelSet:
    if labels.background is None or labels.background in NAMED:
        return labels
    path = os.path.abspath(folder / labels.background)
    if not os.path.exists(path) or os.path.isdir(path):
        raise error(f"background: {path!r} is no file; expected {', '.join(NAMED)}, or a label file's path from this file")
    return msgspec.structs.replace(labels, background=path)
