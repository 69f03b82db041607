"""The labels of a request: texts, or a label file's JSON."""

from __future__ import annotations

from collections.abc import Sequence

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.label_set import LabelSet, count_rows, count_texts, label_set
from sigrl_deploy.labels.reading import NAMED, parse_label_set
from sigrl_deploy.triton_server.names import LABELS

_MOST_BYTES = 1 << 22  # of a request's labels


def requested_labels(texts: Sequence[bytes], most: int) -> LabelSet:
    """The label set that a row of LABELS stands for: labels, or one text that begins with { and is a label file's JSON.

    Empty texts, which fill up the rows of shorter sets, are left out.

    Raises LabelError for labels that cannot be used, for more than `most` rows or texts to encode, and for a background that
    is a file: requests read none.
    """
    given = [text for text in texts if text]
    if sum(map(len, given)) > _MOST_BYTES:
        raise _error(f"has more than {_MOST_BYTES >> 20} MB; expected at most {most:,} labels")
    try:
        decoded = [text.decode("utf-8") for text in given]
    except UnicodeDecodeError:
        raise _error("is not UTF-8; encode the labels as UTF-8") from None
    is_file = len(decoded) == 1 and decoded[0].lstrip().startswith("{")
    found = parse_label_set(decoded[0], ".json", _error) if is_file else label_set(decoded)
    if found.background not in (None, *NAMED):
        raise _error(f"background: a request reads no files; expected {' or '.join(NAMED)}")
    if max(count_rows(found), count_texts(found)) > most:
        held = f"{len(found.labels):,} labels with {count_texts(found):,} texts to encode"
        raise _error(f"holds {held}, this server takes {most:,} of each at most")
    return found


def _error(problem: str) -> LabelError:
    return LabelError(problem, argument=LABELS)
