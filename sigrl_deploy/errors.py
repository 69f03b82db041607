"""Everything that sigrl_deploy raises on purpose.

    SigRLError
    ├── UsageError          an argument, or a file that it names, cannot be used
    │   ├── LabelError
    │   └── DatasetError
    ├── ImageError          one picture cannot be read
    ├── ScoreError          one picture's scores are not finite
    ├── CheckpointError
    ├── BundleError
    ├── ExportError
    ├── TrainingError
    ├── VerificationError
    └── ClusterError

A message is one line: what was wrong, in which file or argument, what was expected, and what to do about it. Arguments that it
advises stand in backticks, as a Python keyword: `force`, or `backend='torch'`. The command line prints the line without a
traceback, with arguments as its own options, and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TypeVar

Member = TypeVar("Member", bound=Enum)


class SigRLError(Exception):
    """Base of every error raised on purpose.

    >>> try:
    ...     Recognizer("bundle", precision="half")
    ... except SigRLError as error:
    ...     print(error.argument, error.value)
    precision half

    Args:
        problem: the line, without the argument.
        argument: name of the parameter or option field at fault, "" where it is none.
        value: what it was given, where that tells more than the line.
    """

    exit_code = 3  # of `sigrl-deploy`

    def __init__(self, problem: str, *, argument: str = "", value: object = None) -> None:
        super().__init__(problem)
        self.argument = argument
        self.value = value

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses take other arguments than the line; another process gets an error as it was made.
        return _restored, (type(self), self.args, self.__dict__)

    @property
    def problem(self) -> str:
        """The line, without the argument."""
        return str(self.args[0])

    def __str__(self) -> str:
        if not self.argument:
            return self.problem
        value = "" if self.value is None else f"={_as_code(self.value)}"
        return f"{self.argument}{value}: {self.problem}"


def _as_code(value: object) -> str:
    """A value as one types it in Python; a path as its text."""
    if isinstance(value, Enum):
        value = value.value
    return repr(value if isinstance(value, (int, float, str, list)) else str(value))


class UsageError(SigRLError):
    """An argument, or a file that an argument names, cannot be used as asked.

    `extra` is the part of this package that is not installed, "" where nothing is missing.
    """

    exit_code = 2

    def __init__(self, problem: str, *, argument: str = "", value: object = None, extra: str = "") -> None:
        super().__init__(problem, argument=argument, value=value)
        self.extra = extra


class LabelError(UsageError):
    """A label file or a list of labels is empty, repeats a label, or holds one that cannot be encoded."""


class ImageError(SigRLError):
    """One picture cannot be read. In a run over many pictures it becomes an error record, and the others go on.

    >>> try:
    ...     recognizer.recognize(["missing.jpg"], ["cat", "cup of coffee"])
    ... except ImageError as error:
    ...     print(error)
    missing.jpg: ...
    """


class ScoreError(SigRLError):
    """A picture's scores are not finite; `picture` is its place among the pictures that were given.

    In a run over many pictures it becomes an error record, and the others go on.
    """

    def __init__(self, problem: str, picture: int = 0) -> None:
        super().__init__(problem)
        self.picture = picture


class DatasetError(UsageError):
    """A data set's files are missing, damaged or contradict each other."""


class CheckpointError(SigRLError):
    """A checkpoint has no known layout, or one of its tensors is missing or has the wrong shape."""


class ExportError(SigRLError):
    """A bundle could not be written, or its graphs differ from the PyTorch model by more than the tolerance."""


class TrainingError(SigRLError):
    """A training run cannot go on: its loss is not finite, or what it has learned cannot be saved."""


class BundleError(SigRLError):
    """A bundle is incomplete, damaged, of an unknown format version, or cannot run on the engine asked for."""


class VerificationError(SigRLError):
    """Scores differ from the reference by more than the tolerance."""


class ClusterError(SigRLError):
    """Ray's workers could not start, or died again and again."""


def _restored(kind: type[SigRLError], args: tuple[object, ...], fields: dict[str, object]) -> SigRLError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


@contextmanager
def errors_about(**arguments: str) -> Iterator[None]:
    """Errors in the block name the caller's arguments: `errors_about(checkpoint="init")` turns `checkpoint` into `init`."""
    try:
        yield
    except SigRLError as error:
        error.argument = arguments.get(error.argument, error.argument)
        raise


def kind_of(value: object) -> str:
    """The type of a value, with its article: "an int"."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def printable(text: str) -> str:
    """Text that stays on one line and is safe on a terminal: line feeds, control sequences and stray bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def member_of(kind: type[Member], value: object, argument: str) -> Member:
    """The member of an enum that `value` is or spells. Raises UsageError, which names `argument`, for anything else."""
    try:
        return kind(value)
    except ValueError:
        expected = ", ".join(str(member.value) for member in kind)
        raise UsageError(f"expected one of {expected}", argument=argument, value=value) from None
