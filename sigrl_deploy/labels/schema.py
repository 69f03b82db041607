"""The schema of label files in plain values, as TOML, JSON and requests bring them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.label_set import Label, LabelSet, check_label_set, key_of

VERSION = 1
_SHOWN = 60  # characters of a file's content in a message
_LIST = "a list of texts, such as "
_EXPECTED = {
    "name": "text in quotes",
    "synonyms": f'{_LIST}["couch", "settee"]',
    "templates": f'{_LIST}["a photo of a {{label}}"]',
    "parents": f'{_LIST}["furniture"]',
    "threshold": "a finite number without quotes, such as 0.25",
    "emit": "true or false",
    "match": '"mean" or "any"',
    "background": '"bundle", "common" or the path of another label file',
}
_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
_PLACE = re.compile(r"(\w+)(?:\[(\d+)\])?")  # of a field, or of an item of it, at the start of a problem


class Repeated(dict[str, Any]):
    """What was read of an object that gives a key twice."""

    def __init__(self, values: Mapping[str, Any], key: str) -> None:
        super().__init__(values)
        self.key = key


def label_set_from_plain(values: object, error: Callable[[str], LabelError]) -> LabelSet:
    """A label set from dicts, lists, texts and numbers, checked. A label that is text alone is its name.

    Nothing is converted to another type. `error` makes an exception of a problem, which is raised: of one line, with the key.
    """
    if not isinstance(values, dict):
        raise error(f'is {_kind(values)}, expected an object such as {{"labels": ["cat", "dog"]}}')
    _check_version(values, error)
    _check_keys(values, "", LabelSet, error)
    entries = values.get("labels")
    if not isinstance(entries, list):
        problem = f"is {_kind(entries)}" if "labels" in values else "is missing"
        raise error(f'labels: {problem}, expected a list of labels, such as ["cat", {{"name": "sofa", "synonyms": ["couch"]}}]')
    labels = tuple(_label(entry, i, error) for i, entry in enumerate(entries))
    rest = _typed(LabelSet, {**values, "labels": []}, "", "", error)
    found = msgspec.structs.replace(rest, labels=labels)
    return check_label_set(found, key_of(found), error)


def plain_of(labels: LabelSet) -> dict[str, Any]:
    """The inverse of `label_set_from_plain`, without what a label or the set leaves at its default."""
    usual = Label("").to_plain()
    entries = [
        {key: value for key, value in label.to_plain().items() if key == "name" or value != usual[key]}
        for label in labels.labels
    ]
    rest = {"templates": list(labels.templates), "background": labels.background}
    return {"version": VERSION, **{key: value for key, value in rest.items() if value}, "labels": entries}


def _label(entry: object, i: int, error: Callable[[str], LabelError]) -> Label:
    place = f"labels[{i}]"
    if isinstance(entry, str):
        return Label(entry)
    if not isinstance(entry, dict):
        raise error(f"{place}: is {_kind(entry)}, expected a label: its name in quotes, or an object with a name")
    name = entry.get("name")
    of_name = f" of {name[:_SHOWN]!r}" if isinstance(name, str) else ""
    _check_keys(entry, f"{place}{of_name}", Label, error)
    if "name" not in entry:
        raise error(f"{place}: has no name; expected one, as text in quotes")
    return _typed(Label, entry, f"{place}.", of_name, error)


def _check_version(values: Mapping[str, Any], error: Callable[[str], LabelError]) -> None:
    version = values.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise error(f"version: is {_kind(version)}, expected the number {VERSION}; a later release may read this file")


def _check_keys(
    values: Mapping[str, Any], place: str, record: type[Label] | type[LabelSet], error: Callable[[str], LabelError]
) -> None:
    """Refuse a key that is given twice, or that the record does not have."""
    start = f"{place}: " if place else ""
    if isinstance(values, Repeated):
        raise error(f"{start}the key {_shown(values.key)} stands twice; remove one of the two")
    fields = record.__struct_fields__
    for key in values:
        if key in fields:
            continue
        of_set = record is Label and key in LabelSet.__struct_fields__
        advice = "; it is of the whole set: write it above the first label" if of_set else ""
        raise error(f"{start}unknown key {_shown(key)}, expected {', '.join(fields)}{advice}")


def _typed(record: type[Any], values: Mapping[str, Any], start: str, of_name: str, error: Callable[[str], LabelError]) -> Any:
    """The record, after the check of types; `start` and `of_name` stand before and behind a field in a message."""
    try:
        return record.from_plain(values)
    except ValueError as problem:
        place = _PLACE.match(str(problem))
        if place is None or place[1] not in _EXPECTED:
            raise error(f"{start.rstrip('.')}{of_name}: {problem}") from None
        key, value, expected = place[0], values[place[1]], _EXPECTED[place[1]]
        if place[2] is not None:
            value, expected = value[int(place[2])], "text in quotes"
        raise error(f"{start}{key}{of_name}: is {_kind(value)}, expected {expected}") from None


def _kind(value: object) -> str:
    """What a value is, in words of the file: short, whatever it is."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the text {_shown(value)}"
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**15):
        return repr(value).lower() if isinstance(value, bool) else repr(value)
    if isinstance(value, int):
        return "a number that is too large"
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"
