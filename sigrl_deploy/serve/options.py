"""What a request asks for besides its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.labels.schema import label_set_from_plain
from sigrl_deploy.serve.problems import RequestError
from sigrl_deploy.structs import Checked

_MOST_TOP = 10_000


class TagOptions(Checked, frozen=True):
    """Options of a request, as its JSON has them; see docs/serving.md.

    `labels` are of the label file's schema, or a list of its labels. None means the default.
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
    found: dict[str, Any] = {}
    for name, text in values.items():
        # A vocabulary may be called "1".
        found[name] = text if name == "vocabulary" else _value(name, text)
    return _checked(found)


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _refused(name, f"{text[:100]!r} is not JSON; expected a number, true or false, or a list of labels") from None


def _checked(values: dict[str, Any]) -> TagOptions:
    try:
        found = TagOptions.from_plain(values)
    except ValueError as error:
        raise _refused("options", str(error)) from None
    if found.vocabulary is not None and found.labels is not None:
        raise _refused("labels", "labels and a vocabulary contradict each other; leave out one of the two")
    return found


def labels_of(values: Any, argument: str = "labels") -> LabelSet:
    """The label set of a request. Raises LabelError for one that is wrong."""
    plain = {"labels": values} if isinstance(values, list) else values
    return label_set_from_plain(plain, lambda problem: LabelError(problem, argument=argument))


def _refused(code: str, line: str) -> RequestError:
    return RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, code, line)


def hugging_face(values: Any) -> tuple[str, LabelSet]:
    """The picture in base64 and the labels of a zero-shot-image-classification. Raises RequestError and LabelError."""
    try:
        asked = msgspec.convert(values, _ZeroShot)
    except msgspec.ValidationError as error:
        problem = f"{error}; expected {{'inputs': base64, 'parameters': {{'candidate_labels': [texts]}}}}"
        raise _refused("request", problem.replace("`", "")) from None
    labels: dict[str, Any] = {"labels": asked.parameters.candidate_labels}
    template = asked.parameters.hypothesis_template
    if template is not None:
        labels["templates"] = [template.replace("{}", "{label}")]
    return asked.inputs, labels_of(labels, "candidate_labels")


class _Parameters(msgspec.Struct):
    candidate_labels: list[str]
    hypothesis_template: str | None = None


class _ZeroShot(msgspec.Struct):
    inputs: str
    parameters: _Parameters
