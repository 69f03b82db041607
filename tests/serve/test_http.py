"""The service over HTTP: every way to send a picture gives what the recognizer gives, and every mistake its status and line."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from sigrl_deploy import Recognizer
from sigrl_deploy.recognizer.predictions import Prediction
from tests.serve.conftest import KITCHEN
from tests.support.servers import Served, serving

TOLERANCE = 1e-5  # fp32 scores within ±1, of one graph run in another order


def assert_same(tags: list[dict[str, Any]], expected: list[Prediction]) -> None:
    assert [tag["label"] for tag in tags] == [prediction.label for prediction in expected]
    assert [tag["score"] for tag in tags] == pytest.approx([prediction.score for prediction in expected], abs=TOLERANCE)


def as_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_every_way_to_send_a_picture(
    client: httpx.Client, reference: Recognizer, photos: list[Path], label_file: Path, kitchen: Path
) -> None:
    path = photos[1]
    (expected,) = reference.recognize([path], kitchen, top=3)
    options = {"vocabulary": "kitchen", "top": "3"}
    raw = client.post("/v1/tag", params=options, content=path.read_bytes(), headers={"content-type": "image/jpeg"})
    bare = client.post(
        "/v1/tag", params=options, content=path.read_bytes(), headers={"content-type": "application/octet-stream"}
    )
    form = client.post("/v1/tag", data=options, files={"picture": path.open("rb")})
    plain = client.post("/v1/tag", json={"picture": as_base64(path), "vocabulary": "kitchen", "top": 3})
    uri = client.post(
        "/v1/tag", json={"picture": f"data:image/jpeg;base64,{as_base64(path)}", "vocabulary": "kitchen", "top": 3}
    )
    for answer in (raw, bare, form, plain, uri):
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert_same(found["tags"], expected)
        assert (found["vocabulary"], found["size"]) == ("kitchen", list(Image.open(path).size))
    (default,) = reference.recognize([path], label_file)
    assert_same(client.post("/v1/tag", json={"picture": as_base64(path)}).json()["tags"], default)


def test_labels_that_come_with_the_request(client: httpx.Client, reference: Recognizer, photos: list[Path]) -> None:
    names = [f"{name} in the kitchen" for name in KITCHEN]
    (expected,) = reference.recognize([photos[0]], names, top=20)
    listed = client.post("/v1/tag", json={"picture": as_base64(photos[0]), "labels": names, "top": 20})
    schema = client.post(
        "/v1/tag", json={"picture": as_base64(photos[0]), "labels": {"version": 1, "labels": names}, "top": 20}
    )
    form = client.post("/v1/tag", data={"labels": json.dumps(names), "top": "20"}, files={"picture": photos[0].open("rb")})
    for answer in (listed, schema, form):
        assert answer.status_code == 200, answer.text
        assert answer.json()["vocabulary"] is None
        assert_same(answer.json()["tags"], expected)


def test_thresholds_parents_and_heat_maps(
    client: httpx.Client, reference: Recognizer, photos: list[Path], kitchen: Path
) -> None:
    (expected,) = reference.recognize([photos[2]], kitchen, top=99)
    limit = expected[4].score - 1e-4
    asked = {"picture": as_base64(photos[2]), "vocabulary": "kitchen", "threshold": limit, "top": 99, "heatmaps": True}
    found = client.post("/v1/tag", json=asked).json()
    assert_same(found["tags"], [prediction for prediction in expected if prediction.score >= limit])
    assert {tag["label"]: tag.get("child") for tag in found["tags"]}.get("drink", "cup of coffee") == "cup of coffee"
    left, top, right, bottom = found["seen"]
    width, height = found["size"]
    # The square in the middle that the model was shown, to a pixel of the 80 that it has.
    pixel = (right - left) / 80
    assert right - left == pytest.approx(bottom - top, abs=pixel)
    assert (left + right, top + bottom) == pytest.approx((width, height), abs=pixel)
    for tag in found["tags"]:
        drawn = Image.open(io.BytesIO(base64.b64decode(tag["heatmap"].removeprefix("data:image/jpeg;base64,"))))
        assert drawn.width / drawn.height == pytest.approx(width / height, rel=0.02)


def test_a_bad_picture_leaves_the_others(client: httpx.Client, reference: Recognizer, photos: list[Path]) -> None:
    pictures = [as_base64(photos[0]), base64.b64encode(b"no picture").decode(), "%%%", as_base64(photos[3])]
    found = client.post("/v1/tags", json={"pictures": pictures, "vocabulary": "kitchen", "top": 2}).json()["results"]
    assert [sorted(each) for each in found] == [
        ["size", "tags", "vocabulary"],
        ["error"],
        ["error"],
        ["size", "tags", "vocabulary"],
    ]
    assert found[1]["error"]["code"] == found[2]["error"]["code"] == "picture"
    assert "not a picture" in found[1]["error"]["message"]
    files = [("picture", photo.open("rb")) for photo in photos]
    several = client.post("/v1/tags", data={"vocabulary": "kitchen", "top": "2"}, files=files).json()["results"]
    assert several[0] == found[0]
    assert several[3] == found[3]


def problem(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert answer.json().keys() == {"error"}
    assert error.keys() == {"code", "message"}
    assert "\n" not in error["message"]
    return answer.status_code, error["code"], error["message"]


@pytest.mark.parametrize(
    ("asked", "status", "code", "fact"),
    [
        ({"vocabulary": "garden"}, 404, "vocabulary", "garden"),
        ({"labels": ["cat", "cat"]}, 422, "labels", "repeats"),
        ({"labels": []}, 422, "labels", "labels"),
        ({"labels": [f"label {i}" for i in range(5000)]}, 422, "labels", "5,000"),
        ({"labels": {"labels": ["cat"], "background": "/etc/passwd"}}, 422, "background", "bundle or common"),
        ({"labels": {"lables": ["cat"]}}, 422, "labels", "lables"),
        ({"labels": ["cat"], "vocabulary": "kitchen"}, 422, "labels", "contradict"),
        ({"top": 0}, 422, "options", "top"),
        ({"top": 1.5}, 422, "options", "top"),
        ({"threshold": "high"}, 422, "options", "threshold"),
        ({"thresholds": True}, 422, "thresholds", "threshold"),
        ({"tpo": 3}, 422, "options", "tpo"),
        ({"picture": "https://example.org/cat.jpg"}, 422, "picture", "URL"),
        ({"picture": "data:image/png,abc"}, 422, "picture", "base64"),
        ({"picture": 3}, 422, "picture", "expected text, got whole number"),
    ],
)
def test_what_is_understood_and_cannot_be_used(
    client: httpx.Client, photos: list[Path], asked: dict[str, Any], status: int, code: str, fact: str
) -> None:
    found = problem(client.post("/v1/tag", json={"picture": as_base64(photos[0])} | asked))
    assert found[:2] == (status, code), found
    assert fact in found[2]


def test_bodies_that_cannot_be_read(client: httpx.Client, photos: list[Path]) -> None:
    assert problem(client.post("/v1/tag", content=b"{", headers={"content-type": "application/json"}))[:2] == (400, "body")
    assert (
        problem(client.post("/v1/tag", content=b'{"labels":' + b"[" * 100_000, headers={"content-type": "application/json"}))[0]
        == 400
    )
    assert problem(client.post("/v1/tag", json=[1]))[:2] == (422, "options")
    assert problem(client.post("/v1/tag", content=b"x", headers={"content-type": "text/plain"}))[0] == 415
    assert problem(client.post("/v1/tag", content=b""))[0] == 415
    assert problem(client.post("/v1/tag", json={}))[:2] == (422, "picture")
    assert problem(client.post("/v1/tag", content=b"", headers={"content-type": "image/jpeg"}))[:2] == (422, "picture")
    cut = {"content-type": "multipart/form-data; boundary=x"}
    assert problem(client.post("/v1/tag", content=b"--x\r\nContent-Disposition: form-data", headers=cut))[0] in (400, 422)
    assert problem(client.post("/v1/tag", content=b"x", headers={"content-type": "multipart/form-data"}))[0] == 400
    large = b"x" * ((20 << 20) + 1)
    assert problem(client.post("/v1/tag", content=large, headers={"content-type": "image/jpeg"}))[:2] == (413, "body")

    def chunks() -> Any:
        for _ in range(21):
            yield b"x" * (1 << 20)

    assert problem(client.post("/v1/tag", content=chunks(), headers={"content-type": "image/jpeg"}))[0] == 413
    files = [("picture", photo.open("rb")) for photo in photos[:2]]
    assert problem(client.post("/v1/tag", files=files))[:2] == (422, "picture")
    assert problem(client.post("/v1/tags", json={"pictures": [as_base64(photos[0])] * 33}))[:2] == (422, "pictures")
    assert problem(client.post("/v1/tags", json={"pictures": []}))[:2] == (422, "pictures")
    assert problem(client.get("/nothing"))[0] == 404
    assert problem(client.get("/v1/tag"))[0] == 405


def test_vocabularies_come_and_go(client: httpx.Client, reference: Recognizer, photos: list[Path], kitchen: Path) -> None:
    labels = {"labels": [{"name": "cat", "synonyms": ["kitty"]}, *KITCHEN[3:]]}
    made = client.put("/v1/vocabularies/mine", json=labels)
    assert (made.status_code, made.json()["labels"], made.json()["fixed"]) == (201, 9, False)
    assert client.put("/v1/vocabularies/mine", json=labels).status_code == 200
    assert client.get("/v1/vocabularies/mine").json()["label_set"]["labels"][0] == {"name": "cat", "synonyms": ["kitty"]}
    listed = client.get("/v1/vocabularies").json()
    assert listed["default"] == "everyday"
    assert [each["name"] for each in listed["vocabularies"]] == ["everyday", "kitchen", "mine"]
    tags = client.post("/v1/tag", json={"picture": as_base64(photos[0]), "vocabulary": "mine", "top": 9}).json()["tags"]
    from sigrl_deploy import Label

    (expected,) = reference.recognize([photos[0]], [Label("cat", ("kitty",)), *KITCHEN[3:]], top=9)
    assert_same(tags, expected)
    assert client.delete("/v1/vocabularies/mine").status_code == 204
    assert problem(client.delete("/v1/vocabularies/mine"))[0] == 404
    assert problem(client.get("/v1/vocabularies/mine"))[0] == 404
    assert problem(client.put("/v1/vocabularies/kitchen", json=labels))[0] == 409
    assert problem(client.delete("/v1/vocabularies/kitchen"))[0] == 409
    assert problem(client.put("/v1/vocabularies/a%20b", json=labels))[0] == 422


def test_what_runs_and_how_it_is(client: httpx.Client, served: Served) -> None:
    info = client.get("/info").json()
    assert info["bundle"]["arch"] == "sigrl"
    assert info["limits"]["body_bytes"] == 20_000_000
    assert [each["name"] for each in info["vocabularies"]] == ["everyday", "kitchen"]
    assert client.get("/health/live").status_code == client.get("/health/ready").status_code == 200
    metrics = client.get("/metrics").text
    for word in ("sigrl_waiting_pictures", "sigrl_batch_pictures", "sigrl_bytes_in_flight", "decoding", "scoring"):
        assert word in metrics
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/v1/tag", "/v1/tags", "/v1/vocabularies/{name}", "/info"}
    assert "access-control-allow-origin" not in client.get("/info", headers={"origin": "https://example.org"}).headers


def test_the_clients_of_others(served: Served, reference: Recognizer, photos: list[Path]) -> None:
    """Hugging Face's client and curl."""
    names = [*KITCHEN]
    (expected,) = reference.recognize([photos[0]], names, top=99)
    found = InferenceClient(model=served.url).zero_shot_image_classification(photos[0], candidate_labels=names)
    assert_same([{"label": each.label, "score": each.score} for each in found], expected)
    command = ["curl", "-sS", "--data-binary", f"@{photos[0]}", "-H", "Content-Type: image/jpeg", f"{served.url}/v1/tag?top=2"]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert len(answer["tags"]) == 2


def test_a_key(bundle: Path, label_file: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame\n")
    options = ["--labels", f"everyday={label_file}", "--api-key-file", tmp_path / "key", "--access-log"]
    with serving(bundle, *options) as server:
        for headers in ({}, {"authorization": "Bearer simsim"}, {"authorization": "sesame"}):
            answer = httpx.post(f"{server.url}/v1/tag", content=b"x", headers={"content-type": "image/jpeg"} | headers)
            assert problem(answer)[:2] == (401, "key")
            assert httpx.get(f"{server.url}/info", headers=headers).status_code == 401
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        assert httpx.get(f"{server.url}/info", headers={"authorization": "Bearer sesame"}).status_code == 200
        server.stop()
        assert server.process.stdout is not None
        lines = [json.loads(line) for line in server.process.stdout]
    assert [(line["path"], line["status"]) for line in lines][-2:] == [("/health/ready", 200), ("/info", 200)]


def test_clients_that_are_slow(bundle: Path, label_file: Path) -> None:
    limits = ["--header-seconds", "0.5", "--body-seconds", "0.5"]
    with serving(bundle, "--labels", f"everyday={label_file}", *limits) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as half_open:
            half_open.sendall(b"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\n")
            assert half_open.recv(1000) == b""  # closed
        with socket.create_connection(("127.0.0.1", port), timeout=60) as trickling:
            trickling.sendall(
                b"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 100\r\n\r\nabc"
            )
            assert trickling.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert httpx.get(f"{server.url}/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--labels", "everyday.txt"], "NAME=FILE"),
        (["--labels", "a=LABELS", "--labels", "a=LABELS"], "twice"),
        (["--labels", "a b=LABELS"], "a b"),
        (["--labels", "a=gone.txt"], "gone.txt"),
        (["--thresholds", "b=gone.json", "--labels", "a=LABELS"], "gone.json"),
        (["--api-key-file", "gone", "--labels", "a=LABELS"], "gone"),
        (["--in-flight-mb", "10", "--labels", "a=LABELS"], "--in-flight-mb 10"),
    ],
)
def test_what_cannot_be_served(bundle: Path, label_file: Path, options: list[str], fact: str) -> None:
    arguments = [option.replace("LABELS", str(label_file)) for option in options]
    command = [sys.executable, "-m", "sigrl_deploy", "serve", "--bundle", str(bundle), "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert fact in line


@pytest.mark.parametrize(
    ("path", "asked", "status", "fact"),
    [
        ("/v1/tags", {"pictures": [""] * 100_000}, 422, "100,000 pictures, expected 1 to 32"),
        ("/v1/tags", {"pictures": ["", 0]}, 422, "expected text"),
        ("/v1/tag", {"picture": "", "labels": [f"label {i}" for i in range(40_000)]}, 422, "40,000 labels"),
        ("/v1/tag", {"picture": "", "labels": [f"label {i}" for i in range(200_000)]}, 413, "at most"),
        ("/v1/tag", {"picture": "", "labels": [{"name": "cat", "parents": [f"p{i}" for i in range(20_000)]}]}, 422, "20,001"),
        ("/v1/tag", {"picture": "", "labels": [{"name": "a", "match": "\ud800"}]}, 400, "JSON"),
        ("/", {"inputs": "", "parameters": {"candidate_labels": ["a"] * 100_000}}, 422, "100,000 labels"),
    ],
    ids=["pictures", "no-text", "labels", "very-many-labels", "parents", "half-a-character", "candidate-labels"],
)
def test_what_is_too_much_is_refused_before_anything_is_made_of_it(
    client: httpx.Client, path: str, asked: dict[str, Any], status: int, fact: str
) -> None:
    body = json.dumps(asked).encode()
    found = problem(client.post(path, content=body, headers={"content-type": "application/json"}))
    assert found[0] == status, found
    assert fact in found[2]


def test_options_stand_in_one_place_and_once(client: httpx.Client, photos: list[Path]) -> None:
    picture, raw = {"picture": as_base64(photos[0])}, {"content-type": "image/jpeg"}
    found = problem(client.post("/v1/tag", params={"top": 1}, json=picture))
    assert found[:2] == (422, "options")
    assert "'top'" in found[2]
    assert problem(client.post("/v1/tag", params={"top": 1}, files={"picture": photos[0].open("rb")}))[:2] == (422, "options")
    twice = client.post("/v1/tag?top=1&top=2", content=photos[0].read_bytes(), headers=raw)
    assert problem(twice)[:2] == (422, "top")
    labels = problem(client.post("/v1/tag?labels=cat", content=photos[0].read_bytes(), headers=raw))
    assert labels[1] == "labels"
    assert '["cat", "dog"]' in labels[2]


def test_base64_in_lines(client: httpx.Client, photos: list[Path]) -> None:
    plain = client.post("/v1/tag", json={"picture": as_base64(photos[0])})
    lines = client.post("/v1/tag", json={"picture": base64.encodebytes(photos[0].read_bytes()).decode()})
    assert (lines.status_code, lines.json()) == (200, plain.json())
