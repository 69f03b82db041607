"""Everything that sigrl_deploy raises on purpose.

A message is one line: what was wrong, in which file or argument, what was expected, and what to do about it. The command
line prints it without a traceback and exits with `exit_code`.
"""


class SigRLError(Exception):
    """Base of every error raised on purpose; `exit_code` is what `sigrl-deploy` exits with."""

    exit_code = 3


class UsageError(SigRLError):
    """An argument, or a file that an argument names, cannot be used as asked."""

    exit_code = 2


class LabelError(UsageError):
    """A label file or a list of labels is empty, repeats a label, or holds one that cannot be encoded."""


class ImageError(SigRLError):
    """One picture cannot be read. In a run over many it becomes an error record, and the others go on."""


class ScoreError(SigRLError):
    """A picture's scores are no finite numbers; `picture` is its place in the batch.

    In a run over many it becomes an error record, and the others go on.
    """

    def __init__(self, message: str, picture: int = 0) -> None:
        super().__init__(message)
        self.picture = picture


class DatasetError(UsageError):
    """A data set's files are missing, damaged or contradict each other."""


class CheckpointError(SigRLError):
    """A checkpoint is of no known layout, or one of its tensors is missing or misshapen."""


class ExportError(SigRLError):
    """A bundle could not be written, or its graphs differ from the eager model by more than the tolerance."""


class TrainingError(SigRLError):
    """A training run cannot go on: its loss is no number any more, or what it has learned cannot be saved."""


class BundleError(SigRLError):
    """A bundle is incomplete, damaged, of another format version, or cannot run on the engine asked for."""


class VerificationError(SigRLError):
    """Scores differ from the reference by more than the tolerance."""


def printable(text: str) -> str:
    """Text that stays on one line and is safe on a terminal: line feeds, control sequences and stray bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
