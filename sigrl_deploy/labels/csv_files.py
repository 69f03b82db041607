"""Label sets as CSV, for spreadsheets."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from io import StringIO

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.label_set import Label, LabelSet, check_label_set

_COLUMNS = ("label", "synonyms", "parents", "threshold", "emit")
_EMITTED = {"": True, "yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_SHOWN = 60  # characters of a cell in a message
_Error = Callable[[str], LabelError]


def parse_csv(text: str, error: _Error) -> LabelSet:
    """The label set of a CSV file, whose first line names its columns: `label`, and any of the others.

    Where that line has semicolons for commas, as a spreadsheet writes them in some countries, semicolons separate cells
    everywhere, and a threshold may have a decimal comma. Within cells, semicolons separate synonyms and parents either way.

    `error` makes an exception of a problem, which is raised with the number of its line.
    """
    header = text.lstrip("\r\n").replace("\r", "\n").partition("\n")[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    rows = _rows(text, delimiter, error)
    number, cells = next(rows, (1, []))
    columns = _columns(cells, number, error)
    labels, lines = [], []
    for number, cells in rows:
        if any(cells[len(columns) :]):
            advice = f"in quotes, a cell may hold {delimiter!r}"
            raise error(f"line {number}: {len(cells)} cells, expected {len(columns)} as in the first line; {advice}")
        row = dict(zip(columns, cells, strict=False))
        labels.append(_label(row, number, delimiter, error))
        lines.append(number)

    def place(i: int, field: str) -> str:
        return f"line {lines[i]}, {'label' if field == 'name' else field}"

    return check_label_set(LabelSet(tuple(labels)), place, error)


def _rows(text: str, delimiter: str, error: _Error) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line, and the stripped cells, of each row that is not blank."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as problem:
        raise error(f"line {number}: {problem}; expected comma-separated values, quotes in pairs") from None


def _columns(cells: Sequence[str], number: int, error: _Error) -> list[str]:
    names = [cell.casefold() for cell in cells]
    while names and not names[-1]:  # a spreadsheet writes columns that were once in use
        names.pop()
    expected = f"expected {','.join(_COLUMNS)}, of which label is needed"
    if "label" not in names:
        raise error(f"line {number}: no column is called label; {expected}; one label a line goes into a .txt file")
    for i, name in enumerate(names):
        if name not in _COLUMNS:
            advice = "templates and match can be given in a .toml or .json file"
            raise error(f"line {number}: unknown column {name[:_SHOWN]!r}, {expected}; {advice}")
        if name in names[:i]:
            raise error(f"line {number}: the column {name} stands twice; remove one of the two")
    return names


def _label(row: dict[str, str], number: int, delimiter: str, error: _Error) -> Label:
    emit = row.get("emit", "")
    if emit.casefold() not in _EMITTED:
        raise error(f"line {number}, emit: {emit[:_SHOWN]!r}, expected yes, no, true, false, 1, 0 or an empty cell")
    return Label(
        row.get("label", ""),
        synonyms=_listed(row.get("synonyms", "")),
        parents=_listed(row.get("parents", "")),
        threshold=_number(row.get("threshold", ""), number, delimiter, error),
        emit=_EMITTED[emit.casefold()],
    )


def _listed(cell: str) -> tuple[str, ...]:
    return tuple(text.strip() for text in cell.split(";") if text.strip())


def _number(cell: str, line: int, delimiter: str, error: _Error) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell.replace(",", ".") if delimiter == ";" else cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in cell:
        raise error(f"line {line}, threshold: {cell[:_SHOWN]!r}, expected a finite number such as 0.25, or an empty cell")
    return value
