"""Labels, from a file or from code, checked."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from sigrl_deploy.errors import LabelError

MAX_LABEL_LENGTH = 256  # characters; CLIP's context of 77 tokens ends long before
_MOST_LABEL_BYTES = 1 << 26  # of a label file: a quarter of a million of the longest labels


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Labels of a UTF-8 file, one a line; blank lines and lines that start with `#` are skipped.

    Raises LabelError with the line number where the file cannot be read, is empty, or has a label that `check_labels` refuses.
    """
    try:
        with open(path, "rb") as file:  # which may be a pipe: <(command) is one
            raw = file.read(_MOST_LABEL_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LabelError(f"{path}: cannot be read ({reason}); expected a text file with one label a line") from None
    if len(raw) > _MOST_LABEL_BYTES:
        raise LabelError(f"{path}: has more than {_MOST_LABEL_BYTES >> 20} MB; expected a text file with one label a line")
    numbered = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            label = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise LabelError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None
        if label and not label.startswith("#"):
            numbered.append((f"{path}, line {number}", label))
    return _checked(numbered, str(path))


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels given in code, stripped. Raises LabelError for none at all, an empty, repeated, overlong or unprintable one."""
    if not isinstance(labels, Iterable) or isinstance(labels, (bytes, Mapping)):
        raise LabelError(f"labels: is a {type(labels).__name__}, expected a list of text, or the path of a label file")
    numbered = []
    for i, label in enumerate(labels):
        if not isinstance(label, str):
            raise LabelError(f"labels[{i}]: is a {type(label).__name__}, expected text")
        numbered.append((f"labels[{i}]", label.strip()))
    return _checked(numbered, "labels")


def _checked(numbered: Iterable[tuple[str, str]], source: str) -> tuple[str, ...]:
    seen: dict[str, str] = {}
    for place, label in numbered:
        if not label:
            raise LabelError(f"{place}: empty; expected a label")
        if len(label) > MAX_LABEL_LENGTH:
            raise LabelError(f"{place}: {len(label)} characters long, expected a label of at most {MAX_LABEL_LENGTH}")
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in label):
            raise LabelError(
                f"{place}: {label!r} holds a control character or line separator; expected one label a line of plain text"
            )
        if label in seen:
            raise LabelError(f"{place}: {label!r} repeats {seen[label]}; remove one of the two")
        seen[label] = place
    if not seen:
        raise LabelError(f"{source}: holds no labels; expected one label a line")
    return tuple(seen)
