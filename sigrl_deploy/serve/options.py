"""What a request asks for besides its pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.labels.schema import label_set_from_plain
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.problems import RequestError
from sigrl_deploy.structs import Checked

_MOST_TOP = 10_000
_WORDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "array": "list", "|": "or"}
_TYPES = re.compile(r"(?<![\w.])(?:str|int|float|bool|array|\|)(?![\w.:])")
_EXPECTED = {
    "labels": 'a JSON list, such as ["cat", "dog"]',
    "top": "a whole number",
    "threshold": "a number, such as 0.2",
    "thresholds": "true or false",
    "heatmaps": "true or false",
}


class TagOptions(Checked, frozen=True):
    """Options of a request, as its JSON has them.

    Attributes:
        vocabulary: the name of one; by default the first.
        labels: instead of it, labels for this request.
        top: at most so many tags, parents not counted; by default 5, or all where a file of thresholds decides.
        threshold: of the tags that `top` leaves, leave out those that score below it.
        thresholds: whether the vocabulary's own thresholds are used; by default they are.
        heatmaps: whether the best tags get a heat map; by default none does.
    """

    vocabulary: str | None = None
    labels: Any = None
    top: Annotated[int, Meta(ge=1, le=_MOST_TOP)] | None = None
    threshold: Annotated[float, Meta(ge=-1e6, le=1e6)] | None = None
    thresholds: bool | None = None
    heatmaps: bool = False


def from_json(values: Mapping[str, Any]) -> TagOptions:
    """Options from a JSON object without its pictures. Raises RequestError."""
    return _checked(dict(values))


def from_text(values: Mapping[str, str]) -> TagOptions:
    """Options from a query string or from the fields of a form: numbers and true or false as text. Raises RequestError."""
    # A vocabulary may be called "1".
    return _checked({name: text if name == "vocabulary" else _value(name, text) for name, text in values.items()})


def _value(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        expected = _EXPECTED.get(name, f"one of the options {', '.join(TagOptions.__struct_fields__)}")
        raise _refused(name[:60], f"{name[:60]} is {text[:100]!r}, expected {expected}") from None


def _checked(values: dict[str, Any]) -> TagOptions:
    try:
        found = TagOptions.from_plain(values)
    except ValueError as error:
        raise _refused("options", in_words(str(error))) from None
    if found.vocabulary is not None and found.labels is not None:
        raise _refused("labels", "labels and a vocabulary contradict each other; leave out one of the two")
    return found


def in_words(problem: str) -> str:
    """A problem with the names of JSON's types in place of Python's."""
    return _TYPES.sub(lambda found: _WORDS[found[0]], problem)


def labels_of(values: Any, limits: Limits, argument: str = "labels") -> LabelSet:
    """The label set of a request. Raises LabelError for one that is wrong, or says more than `limits.label_items` things."""
    if (items := _items(values)) > limits.label_items:
        problem = f"name {items:,} labels, synonyms, parents and templates, expected {limits.label_items:,} at most; send fewer"
        raise LabelError(problem, argument=argument)
    plain = {"labels": values} if isinstance(values, list) else values
    return label_set_from_plain(plain, lambda problem: LabelError(problem, argument=argument))


def _items(values: Any) -> int:
    """How many things lists of lists name, before anything is made of them."""
    if isinstance(values, dict):
        return sum(_items(each) for each in values.values() if isinstance(each, (list, dict)))
    return len(values) + sum(_items(each) for each in values if isinstance(each, dict)) if isinstance(values, list) else 0


def _refused(code: str, line: str) -> RequestError:
    return RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, code, line)


def hugging_face(asked: ZeroShot, limits: Limits) -> LabelSet:
    """The labels of a zero-shot-image-classification. Raises LabelError."""
    labels: dict[str, Any] = {"labels": asked.parameters.candidate_labels}
    template = asked.parameters.hypothesis_template
    if template is not None:
        labels["templates"] = [template.replace("{}", "{label}")]
    return labels_of(labels, limits, "candidate_labels")


class ZeroShotParameters(msgspec.Struct):
    """The labels of a request as Hugging Face's clients send it.

    Attributes:
        candidate_labels: what to look for.
        hypothesis_template: the text that labels are put into, at its {}; by default the bundle's.
    """

    candidate_labels: list[str]
    hypothesis_template: str | None = None


class ZeroShot(msgspec.Struct):
    """A request as Hugging Face's clients send it for zero-shot-image-classification.

    Attributes:
        inputs: the picture's file in base64.
    """

    inputs: str
    parameters: ZeroShotParameters
