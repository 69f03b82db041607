"""The service's interface as an OpenAPI document."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from sigrl_deploy.serve.schemas import PICTURE_FILE, Schema, list_of, option_schemas, record, ref, schemas
from sigrl_deploy.version import __version__

Operation = dict[str, Any]

_WHEN = {
    400: "the request or its body is damaged",
    401: "the key is missing or wrong",
    404: "there is no such vocabulary",
    408: "the body is too slow",
    409: "the vocabulary stays as it is, or there is no room for another one",
    413: "the body is too large",
    415: "the body is of no type that is read",
    421: "Host is another name than localhost, and the service, for this machine only, has no key",
    422: "it was understood, and cannot be used: no picture, wrong labels or options",
    429: "too much to do",
    500: "the engine failed",
    503: "the service starts, ends, or its engine no longer runs",
    504: "not done in time",
}
_BODY = (400, 408, 413, 422)  # what may be wrong with any body
_WORK = (429, 500, 503, 504)  # and with what the engine does
_OPEN = "/health/"  # needs no key
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="  # a picture
_NAMES = ["cat", "cup of coffee", "lamp"]
_RAW = {"image/*": {"schema": PICTURE_FILE}, "application/octet-stream": {"schema": PICTURE_FILE}}
_RETRY = {"Retry-After": {"description": "seconds until it may be tried again", "schema": {"type": "integer"}}}


def describe(has_key: bool) -> dict[str, Any]:
    """The document; `has_key` says whether the service asks for a key. Addresses in it are relative to the document's own."""
    paths = _paths()
    for path, operations in paths.items():
        for operation in operations.values():
            if has_key and path.startswith(_OPEN):
                operation["security"] = []
            else:
                operation["responses"] |= _errors(401 if has_key else 421)
    about = "Errors are JSON with one line that says what is wrong and what to do."
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "sigrl-deploy", "version": __version__, "description": about},
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": schemas()},
    }
    if has_key:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _paths() -> dict[str, dict[str, Operation]]:
    return {
        "/v1/tag": {"post": _tag()},
        "/v1/tags": {"post": _tags()},
        "/v1/vocabularies": {"get": _operation("vocabularies", "List vocabularies", _ok("Vocabularies"))},
        "/v1/vocabularies/{name}": _vocabulary(),
        "/": {"post": _zero_shot()},
        "/info": {"get": _operation("info", "What runs here, and within which limits", _ok("Info"))},
        "/health/live": {"get": _operation("live", "Whether the process answers", _text("it does"))},
        "/health/ready": {
            "get": _operation(
                "ready", "Whether it takes pictures", _text("it does") | _text("not now", HTTPStatus.SERVICE_UNAVAILABLE)
            )
        },
        "/metrics": {"get": _operation("metrics", "Figures for Prometheus", _text("in its text format"))},
    }


def _tag() -> Operation:
    form = {"multipart/form-data": _form(PICTURE_FILE)}
    example = {"picture": _PIXEL, "top": 3}
    return _tagging("tag", "Tag one picture", "TaggedPicture", _RAW | form | _json("TagRequest", example))


def _tags() -> Operation:
    form = {"multipart/form-data": _form(list_of(PICTURE_FILE))}
    example = {"pictures": [_PIXEL], "top": 3}
    summary = "Tag several pictures; a bad one leaves the others"
    return _tagging("tags", summary, "TaggedPictures", form | _json("TagsRequest", example) | _RAW)


def _tagging(name: str, summary: str, answer: str, content: dict[str, Any]) -> Operation:
    responses = _ok(answer) | _errors(404, 415, *_BODY, *_WORK)
    about = "Options stand in the address where the body is the picture, and else in the body."
    return _operation(name, summary, responses, content, _query_options()) | {"description": about}


def _zero_shot() -> Operation:
    content = _json("ZeroShot", {"inputs": _PIXEL, "parameters": {"candidate_labels": _NAMES}})
    answer = _answer("every label with its score, best first", list_of(ref("ZeroShotTag")))
    summary = "Tag one picture, as Hugging Face's zero-shot-image-classification"
    return _operation("zero_shot_image_classification", summary, {"200": answer} | _errors(*_BODY, *_WORK), content)


def _vocabulary() -> dict[str, Operation]:
    name = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": "mine"}]
    content = _json("LabelSet", {"labels": _NAMES})
    made = (
        _ok("Vocabulary", "it was replaced") | {"201": _answer("it is new", ref("Vocabulary"))} | _errors(409, *_BODY, *_WORK)
    )
    gone = {"204": {"description": "it is gone"}} | _errors(404, 409)
    shown = _ok("VocabularyLabels") | _errors(404)
    return {
        "put": _operation("put_vocabulary", "Make or replace a vocabulary, from a label set", made, content, name),
        "get": _operation("vocabulary", "A vocabulary with its labels", shown, parameters=name),
        "delete": _operation("delete_vocabulary", "Remove a vocabulary", gone, parameters=name),
    }


def _operation(
    name: str,
    summary: str,
    responses: dict[str, Any],
    content: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> Operation:
    found: Operation = {"operationId": name, "summary": summary, "responses": responses}
    if parameters:
        found["parameters"] = parameters
    if content:
        found["requestBody"] = {"required": True, "content": content}
    return found


def _query_options() -> list[dict[str, Any]]:
    """The options, for a body that is the picture. Labels are JSON here."""
    found = []
    for name, schema in option_schemas().items():
        kind = {"content": {"application/json": {"schema": schema}}} if name == "labels" else {"schema": schema}
        example = {"example": 3} if name == "top" else {}
        found.append({"name": name, "in": "query", "description": schema.pop("description"), **kind, **example})
    return found


def _json(schema: str, example: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": ref(schema), "example": example}}


def _form(pictures: Schema) -> dict[str, Any]:
    options = option_schemas()
    return {
        "schema": record({"picture": pictures, **options}, "picture"),
        "encoding": {"labels": {"contentType": "application/json"}},
    }


def _ok(schema: str, description: str = "OK") -> dict[str, Any]:
    return {"200": _answer(description, ref(schema))}


def _answer(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(description: str, status: int = HTTPStatus.OK) -> dict[str, Any]:
    return {str(int(status)): {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}}


def _errors(*statuses: int) -> dict[str, Any]:
    found = {str(status): _answer(_WHEN[status], ref("Problem")) for status in sorted(statuses)}
    if "429" in found:
        found["429"]["headers"] = _RETRY
    return found
