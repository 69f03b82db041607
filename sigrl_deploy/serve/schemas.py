"""JSON schemas of what the service reads and answers, from the records that check requests and the docstrings of both."""

from __future__ import annotations

import inspect
import json
import re
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.options import TagOptions, ZeroShot

Schema = dict[str, Any]


class Tag(msgspec.Struct):
    """A label of a picture.

    Attributes:
        label: the label.
        score: ranks the labels of one picture within one vocabulary; it is no probability, unless the service's scores are.
        threshold: what the score had to reach, where there was a threshold.
        probability: that the picture has the label, where the vocabulary's thresholds have a curve for it, or scores are that.
        child: for a parent, the label below it that brought it; the score is the child's.
        heatmap: where it was found, as a `data:` URI of a JPEG; of the best tags, where heat maps were asked for.
    """

    label: str
    score: float
    threshold: float | UnsetType = UNSET
    probability: float | UnsetType = UNSET
    child: str | UnsetType = UNSET
    heatmap: str | UnsetType = UNSET


class TaggedPicture(msgspec.Struct):
    """The tags of one picture.

    Attributes:
        vocabulary: its name; null for labels that came with the request.
        size: width and height of the upright picture in pixels.
        tags: best first.
        seen: where heat maps were asked for, the part that the model was shown: left, top, right and bottom edge in pixels.
    """

    vocabulary: str | None
    size: Annotated[list[int], Meta(min_length=2, max_length=2)]
    tags: list[Tag]
    seen: Annotated[list[float], Meta(min_length=4, max_length=4)] | UnsetType = UNSET


class ZeroShotTag(msgspec.Struct):
    """A label of a picture, as Hugging Face's clients read it."""

    label: str
    score: float


class Vocabulary(msgspec.Struct):
    """A vocabulary that has a name.

    Attributes:
        name: for the option `vocabulary`.
        labels: how many may become tags.
        rows: what pictures are scored against: labels, and wordings that are scored apart.
        thresholds: whether its labels have thresholds.
        fixed: given at the start, so that it can be neither replaced nor deleted.
    """

    name: str
    labels: int
    rows: int
    thresholds: bool
    fixed: bool


class VocabularyLabels(Vocabulary):
    """A vocabulary with its labels."""

    label_set: LabelSet


class Vocabularies(msgspec.Struct):
    """All vocabularies.

    Attributes:
        default: the one for requests that ask for none; null where there is none.
        vocabularies: those given at the start come first.
    """

    default: str | None
    vocabularies: list[Vocabulary]


class Bundle(msgspec.Struct):
    """The bundle that is served.

    Attributes:
        arch: the architecture.
        image_size: width and height of the model's input in pixels.
        template: the text that labels are put into.
        created: when it was exported.
    """

    arch: str
    image_size: int
    template: str
    created: str


class Info(msgspec.Struct):
    """What runs, and within which limits.

    Attributes:
        name: of the program.
        version: of the program.
        engine: what runs the model, and on what.
        heatmaps: whether heat maps may be asked for.
        probabilities: whether the scores of its model are probabilities, each of its label alone.
        open_labels: whether labels may come with a request.
        default_vocabulary: the one for requests that ask for none; null where there is none.
    """

    name: str
    version: str
    bundle: Bundle
    engine: str
    heatmaps: bool
    probabilities: bool
    open_labels: bool
    limits: Limits
    default_vocabulary: str | None
    vocabularies: list[Vocabulary]


class Error(msgspec.Struct):
    """What is wrong with a request.

    Attributes:
        code: a word for programs.
        message: one line for people: what is wrong, and what to do.
    """

    code: str
    message: str


class Problem(msgspec.Struct):
    """The answer where a request cannot be served."""

    error: Error


_ANSWERS = (TaggedPicture, ZeroShotTag, VocabularyLabels, Vocabularies, Info, Problem)


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def record(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": [*required]}


PICTURE_FILE: Schema = {"type": "string", "format": "binary", "description": "the file"}
_PICTURE: Schema = {"type": "string", "description": "the file in base64, with or without `data:…;base64,` before it"}


def schemas() -> dict[str, Schema]:
    """Schemas by name, of requests and of answers."""
    _, made = msgspec.json.schema_components((TagOptions, ZeroShot, *_ANSWERS), ref_template=ref("{name}")["$ref"])
    found: dict[str, Schema] = json.loads(json.dumps(made))  # without tuples
    for schema in found.values():
        _read_docstring(schema)
    options = found.pop("TagOptions")
    options["properties"]["labels"]["anyOf"] = [ref("Labels"), {"type": "null"}]
    for name, key, pictures in (("TagRequest", "picture", _PICTURE), ("TagsRequest", "pictures", list_of(_PICTURE))):
        found[name] = {
            **options,
            "title": name,
            "description": "What to tag, and options.",
            "properties": {key: pictures, **options["properties"]},
            "required": [key],
        }
    a_label = {"anyOf": [{"type": "string"}, ref("Label")]}
    found["Labels"] = {"anyOf": [list_of(a_label), ref("LabelSet")], "description": "A list of labels, or a label set."}
    label_set = found["LabelSet"]["properties"]
    label_set["labels"]["items"] = a_label
    label_set["background"]["description"] = "scored beside the labels, and never tags: `bundle` or `common`"
    found["VocabularyLabels"]["properties"] |= found["Vocabulary"]["properties"]
    limits = found["Limits"]["properties"]
    for limit in limits.values():
        del limit["default"]
    found["Limits"]["required"] = [*limits]
    found["TaggedPictures"] = record({"results": list_of({"anyOf": [ref("TaggedPicture"), ref("Problem")]})}, "results")
    found["TaggedPictures"]["description"] = "A result for each picture, in their order."
    return dict(sorted(found.items()))


def option_schemas() -> dict[str, Schema]:
    """The options of a request that are no JSON, by name. Here an option is left out and never null.

    None has a default: generated clients send those, in the address beside any body, or as `False`, and are refused.
    """
    found: dict[str, Schema] = {}
    for name, schema in schemas()["TagRequest"]["properties"].items():
        if name != "picture":
            (kind,) = [kind for kind in schema.get("anyOf", [{}]) if kind != {"type": "null"}]
            rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
            found[name] = kind | rest
    return found


def _read_docstring(schema: Schema) -> None:
    """Take a record's description, and those of its fields, from its docstring."""
    text, _, attributes = inspect.cleandoc(schema.get("description", "")).partition("\nAttributes:\n")
    schema["description"] = " ".join(text.partition(">>>")[0].split())
    for name, meaning in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE):
        for python, plain in (("None", "null"), ("True", "true"), ("False", "false")):
            meaning = re.sub(rf"\b{python}\b", plain, meaning)
        schema["properties"][name]["description"] = " ".join(meaning.split())
