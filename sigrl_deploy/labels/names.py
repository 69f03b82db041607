"""Labels that are nothing but names, from a file of lines or from code, checked."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sigrl_deploy.errors import LabelError, kind_of

MAX_LABEL_LENGTH = 256  # characters; CLIP's context of 77 tokens is much shorter
_MOST_BYTES = 1 << 26  # of a label file: a quarter of a million of the longest labels


def read_labels(path: str | Path, argument: str = "labels") -> tuple[str, ...]:
    """Labels of a UTF-8 file, one per line. Blank lines and lines that start with `#` are skipped.

    Raises LabelError, with the line number, where the file cannot be read, is empty, or has a label that `check_labels`
    refuses; `argument` is the one that named the file.
    """

    def error(problem: str) -> LabelError:
        return LabelError(problem, argument=argument, value=path)

    placed = []
    for number, line in enumerate(read_bytes(path, error).splitlines(), start=1):
        label = decoded(line, number, error).strip()
        if label and not label.startswith("#"):
            placed.append((f"line {number}", label))
    return _checked(placed, error)


def read_bytes(path: str | Path, error: Callable[[str], LabelError]) -> bytes:
    """The bytes of a label file without the mark of UTF-8. `error` makes an exception of a problem, which is raised."""
    try:
        with open(path, "rb") as file:  # which may be a pipe: <(command) is one
            raw = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise error(f"cannot be read ({reason}); expected a file of labels") from None
    if len(raw) > _MOST_BYTES:
        raise error(f"has more than {_MOST_BYTES >> 20} MB; expected a file of labels")
    return raw.removeprefix(b"\xef\xbb\xbf")


def decoded(line: bytes, number: int, error: Callable[[str], LabelError]) -> str:
    """A line as text; `error` makes an exception of a problem, which is raised."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise error(f"line {number}: not UTF-8; save the file as UTF-8") from None


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels given in code, stripped. Raises LabelError for a set, no labels, an empty, repeated, long or odd one."""

    def error(problem: str) -> LabelError:
        return LabelError(problem, argument="labels")

    placed = []
    for i, label in enumerate(in_order(labels)):
        if not isinstance(label, str):
            raise error(f"item {i} is {kind_of(label)}, expected text")
        placed.append((f"item {i}", label.strip()))
    return _checked(placed, error)


def in_order(labels: object) -> Iterable[object]:
    """What may be iterated over as labels. Raises LabelError for a set, which has no order, bytes, and a mapping."""
    if isinstance(labels, (set, frozenset)):
        raise LabelError(f"is {kind_of(labels)}, which has no order; expected a list", argument="labels")
    if not isinstance(labels, Iterable) or isinstance(labels, (bytes, Mapping)):
        problem = f"is {kind_of(labels)}, expected a list of labels, or the path of a label file"
        raise LabelError(problem, argument="labels")
    return labels


def text_problem(text: str) -> str:
    """What is wrong with a label or wording; "" where nothing is."""
    if not text:
        return "empty; expected a label"
    if len(text) > MAX_LABEL_LENGTH:
        return f"{len(text)} characters long, expected a label of at most {MAX_LABEL_LENGTH}"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text):
        return f"{text!r} holds a control character or line separator; expected plain text"
    return ""


def _checked(placed: Iterable[tuple[str, str]], error: Callable[[str], LabelError]) -> tuple[str, ...]:
    """The labels, each of which comes with its place; `error` makes an exception of a problem."""
    seen: dict[str, str] = {}
    for place, label in placed:
        if problem := text_problem(label):
            raise error(f"{place}: {problem}")
        if label in seen:
            raise error(f"{place}: {label!r} repeats {seen[label]}; remove one of the two")
        seen[label] = place
    if not seen:
        raise error("holds no labels; expected at least one")
    return tuple(seen)
