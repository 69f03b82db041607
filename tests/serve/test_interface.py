"""The OpenAPI document of the service: it is valid, has every route, and is what the service reads and answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from sigrl_deploy.labels.label_set import Label, LabelSet
from sigrl_deploy.serve.app import Service, make_app
from sigrl_deploy.serve.interface import describe
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.options import TagOptions
from tests.serve.conftest import Guarded

METHODS = {"GET", "POST", "PUT", "DELETE"}
FOR_BROWSERS = {("/", "get"), ("/docs", "get"), ("/openapi.json", "get")}


@pytest.fixture
def locked(guarded: Guarded) -> Iterator[httpx.Client]:
    """Of a service with thresholds and probabilities, which wants a key."""
    headers = {"Authorization": f"Bearer {guarded.key}"}
    with httpx.Client(base_url=guarded.url, headers=headers, timeout=120) as client:
        yield client


def resolved(schema: Any, schemas: dict[str, Any]) -> Any:
    """The schema with every reference replaced, and closed: what it does not name is refused."""
    if isinstance(schema, list):
        return [resolved(each, schemas) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    found = {key: resolved(value, schemas) for key, value in schema.items()}
    return found | {"additionalProperties": False} if "properties" in schema else found


def check(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    Draft202012Validator(resolved(schema, document["components"]["schemas"])).validate(value)


def check_answer(answer: httpx.Response, path: str, document: dict[str, Any]) -> Any:
    """An answer's status is one that the document has for the route, and its JSON is of the schema there."""
    operation = document["paths"][path][answer.request.method.lower()]
    (content,) = operation["responses"][str(answer.status_code)]["content"].values()
    check(answer.json(), content["schema"], document)
    return answer.json()


@pytest.mark.parametrize("has_key", [False, True])
def test_the_document_is_valid_and_says_where_a_key_is_wanted(has_key: bool) -> None:
    document = json.loads(json.dumps(describe(has_key)))
    validate(document)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            wanted = has_key and not path.startswith("/health/")
            assert bool(operation.get("security", document.get("security"))) == wanted, path
            assert ("401" in operation["responses"]) == wanted, path
    names = [operation["operationId"] for each in document["paths"].values() for operation in each.values()]
    assert len(names) == len(set(names))


def test_every_route_is_in_the_document() -> None:
    app = make_app(Service(None, None, Limits(), Metrics(), None, {}, None))
    routes = {(route.path, name.lower()) for route in app.routes for name in getattr(route, "methods", ()) if name in METHODS}
    described = {(path, method) for path, operations in describe(False)["paths"].items() for method in operations}
    assert routes - FOR_BROWSERS == described


def test_every_option_is_there_for_every_kind_of_body() -> None:
    document = describe(False)
    tag, tags = document["paths"]["/v1/tag"]["post"], document["paths"]["/v1/tags"]["post"]
    options = {*TagOptions.__struct_fields__}
    assert {each["name"] for each in tag["parameters"]} == {each["name"] for each in tags["parameters"]} == options
    for operation, request, picture in ((tag, "TagRequest", "picture"), (tags, "TagsRequest", "pictures")):
        content = operation["requestBody"]["content"]
        assert content["multipart/form-data"]["schema"]["properties"].keys() == options | {"picture"}
        assert document["components"]["schemas"][request]["properties"].keys() == options | {picture}
        assert content["application/json"]["schema"]["$ref"].endswith(f"/{request}")
        forms = [*operation["parameters"], *content["multipart/form-data"]["schema"]["properties"].values()]
        assert not [each for each in forms if "default" in each.get("schema", each)], "generated clients would send it"
    assert all(each["description"] for each in tag["parameters"])


def test_every_example_is_of_its_schema_and_is_answered_as_described(locked: httpx.Client) -> None:
    document = locked.get("/openapi.json").json()
    asked = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                check(content["example"], content["schema"], document)
                answer = locked.request(method, path.replace("{name}", "mine"), json=content["example"])
                assert answer.is_success, answer.text
                check_answer(answer, path, document)
                asked += 1
    assert asked == 4
    assert locked.delete("/v1/vocabularies/mine").status_code == 204


def test_answers_are_as_described(client: httpx.Client, locked: httpx.Client, photos: list[Path]) -> None:
    document = client.get("/openapi.json").json()
    picture = base64.b64encode(photos[2].read_bytes()).decode()
    full = {"picture": picture, "vocabulary": "kitchen", "top": 99, "heatmaps": True, "threshold": -1.0}
    check(full, document["components"]["schemas"]["TagRequest"], document)
    tags = check_answer(client.post("/v1/tag", json=full), "/v1/tag", document)["tags"]
    calibrated = check_answer(locked.post("/v1/tag", json={"picture": picture}), "/v1/tag", document)["tags"]
    shown = {key for tag in tags + calibrated for key in tag}
    assert shown == document["components"]["schemas"]["Tag"]["properties"].keys(), "each of them was seen"
    several = client.post("/v1/tags", json={"pictures": [picture, "%"]})
    assert "error" in check_answer(several, "/v1/tags", document)["results"][1]
    for path in ("/v1/vocabularies", "/info"):
        check_answer(client.get(path), path, document)
    check_answer(client.get("/v1/vocabularies/kitchen"), "/v1/vocabularies/{name}", document)
    whole = LabelSet((Label("a", ("b",), ("a {label}",), ("c",), 0.5, True),), templates=("{label}",), background="common")
    for labels in (["cat"], [{"name": "cat"}, "dog"], {"labels": ["cat"], "background": None}, whole.to_plain()):
        check(json.loads(json.dumps(labels)), document["components"]["schemas"]["Labels"], document)


def test_errors_are_as_described(client: httpx.Client, guarded: Guarded, photos: list[Path]) -> None:
    document = describe(True)
    jpeg = {"content": photos[0].read_bytes(), "headers": {"Content-Type": "image/jpeg"}}
    assert check_answer(httpx.post(f"{guarded.url}/v1/tag", **jpeg), "/v1/tag", document)["error"]["code"] == "key"
    for status, path, sent in (
        (400, "/v1/tag", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        (404, "/v1/tag?vocabulary=garden", jpeg),
        (413, "/v1/tags", {"content": bytes(20_000_001), "headers": {"Content-Type": "image/jpeg"}}),
        (415, "/v1/tag", {"content": b"a", "headers": {"Content-Type": "text/plain"}}),
        (422, "/v1/tag?top=0", jpeg),
        (422, "/", {"json": {"inputs": ""}}),
    ):
        answer = client.post(path, **sent)
        assert answer.status_code == status
        check_answer(answer, path.partition("?")[0], document)
    for method, status in (("GET", 404), ("DELETE", 404), ("PUT", 422)):
        answer = client.request(method, "/v1/vocabularies/gone", content=b"{}")
        assert answer.status_code == status
        check_answer(answer, "/v1/vocabularies/{name}", document)
