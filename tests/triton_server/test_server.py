"""The repository in a real Triton server, asked by Triton's own client over HTTP and gRPC.

The server is that of nvidia-pytriton, whose environment $SIGRL_TRITONSERVER names (`make test` makes it). It has no backend for
ONNX files: Python models of the same interface, which run them in ONNX Runtime, stand in for it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sigrl_deploy import Recognizer
from sigrl_deploy.triton_server.repository import RepositoryOptions, write_repository
from tests.support.paths import ROOT, SUPPORT
from tests.support.triton_server import VENV, Server, environment, running, stubs, with_stand_ins

ENVIRONMENT = environment()
pytestmark = pytest.mark.skipif(ENVIRONMENT is None, reason=f"${VENV} names no environment with nvidia-pytriton")

ANIMALS, THINGS = ["cat", "dog", "horse"], ["rocket", "cup of coffee", "table", "boat", "house"]
MOST_LABELS = 12
# Scores of one graph, alone and in a batch, and of two releases of numpy, differ by the order of fp32 sums.
CLOSE = 1e-5
protocols = pytest.mark.parametrize("protocol", ["http", "grpc"])


def python() -> Path:
    assert ENVIRONMENT is not None
    return ENVIRONMENT / "bin" / "python"


def child(**task: Any) -> list[Any]:
    command = [python(), SUPPORT / "triton_client_child.py"]
    run = subprocess.run(command, input=json.dumps(task, default=str), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found: list[Any] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is written, but for stand-ins and fewer labels; and with the front model again, under a short queue."""
    folder = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(RepositoryOptions(bundle, folder))
    with_stand_ins(folder)
    config = folder / "sigrl" / "config.pbtxt"
    text = config.read_text()
    config.write_text(text.replace('string_value: "4096"', f'string_value: "{MOST_LABELS}"'))
    shutil.copytree(folder / "sigrl", folder / "narrow")
    narrow = {
        'name: "sigrl"': 'name: "narrow"',
        "max_batch_size: 16": "max_batch_size: 1",
        "max_queue_size: 256": "max_queue_size: 2",
    }
    narrow |= {"kind: KIND_CPU count: 2": "kind: KIND_CPU count: 1"}
    for old, new in narrow.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "narrow" / "config.pbtxt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert ENVIRONMENT is not None
    with running(repository, tmp_path_factory.mktemp("server"), ENVIRONMENT, STAND_IN_FAILS_FROM="7") as started:
        yield started


@pytest.fixture(scope="module")
def recognizer(bundle: Path) -> Recognizer:
    return Recognizer(bundle, device="cpu", cache_dir=False)


def ask(server: Server, protocol: str, *requests: dict[str, Any], model: str = "sigrl") -> list[Any]:
    """All requests at once."""
    url = server.http if protocol == "http" else server.grpc
    return child(protocol=protocol, url=url, model=model, at_once=len(requests), requests=requests)


def assert_tags(answer: Any, recognizer: Recognizer, picture: Path, labels: list[str], top: int | None = None) -> None:
    (expected,) = recognizer.recognize([picture], labels, top=top)
    tags, error = answer
    assert error == ""
    assert [label for label, _ in tags] == [prediction.label for prediction in expected]
    assert [score for _, score in tags] == pytest.approx([prediction.score for prediction in expected], abs=CLOSE)


def test_configurations_are_triton_s(repository: Path) -> None:
    front, text, visual, *_ = child(
        configs=[repository / name / "config.pbtxt" for name in ("sigrl", "sigrl_text", "sigrl_visual")]
    )
    assert front["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 256
    assert front["instance_group"] == [{"kind": "KIND_CPU", "count": 2}]
    assert [each["name"] for each in front["input"] if each.get("optional")] == ["LABELS", "TOP", "THRESHOLD"]
    assert "max_batch_size" not in visual  # 0, as none is
    assert visual["input"][0]["dims"][0] == "-1"
    for config in (front, text, visual):
        assert config["version_policy"] == {"specific": {"versions": ["1"]}}
        assert len(config["model_warmup"]) == 1


def test_the_server_says_that_it_is_ready(server: Server) -> None:
    paths = [
        "/v2/health/live",
        "/v2/health/ready",
        *(f"/v2/models/{name}/ready" for name in ("sigrl", "sigrl_visual", "sigrl_text")),
    ]
    assert [server.status(path) for path in paths] == [200] * len(paths)


@protocols
def test_tags_are_those_of_the_recognizer(protocol: str, server: Server, recognizer: Recognizer, photos: list[Path]) -> None:
    """Many at once, with two sets of labels, so that batches hold both; and two sets in one request."""
    single = [(photo, labels) for photo in photos[:4] for labels in (ANIMALS, THINGS)]
    requests = [{"pictures": [photo], "labels": [labels], "top": 2} for photo, labels in single]
    *answers, both = ask(server, protocol, *requests, {"pictures": photos[:2], "labels": [ANIMALS, THINGS]})
    for (photo, labels), found in zip(single, answers, strict=True):
        assert_tags(found["answers"][0], recognizer, photo, labels, top=2)
    for photo, labels, answer in zip(photos, (ANIMALS, THINGS), both["answers"], strict=False):
        assert_tags(answer, recognizer, photo, labels)


@protocols
def test_a_mistake_costs_its_own_picture_only(
    protocol: str, server: Server, recognizer: Recognizer, photos: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(photos[0].read_bytes()[:100])
    many = [f"label {i}" for i in range(MOST_LABELS + 1)]
    one, alone, too_many, none = ask(
        server,
        protocol,
        {"pictures": [photos[0], bad, photos[1]], "labels": [ANIMALS] * 3},
        {"pictures": [bad], "labels": [ANIMALS]},
        {"pictures": [photos[0], photos[0]], "labels": [many, ANIMALS]},
        {"pictures": [photos[0]]},
    )
    good, wrong, other = one["answers"]
    assert_tags(good, recognizer, photos[0], ANIMALS)
    assert_tags(other, recognizer, photos[1], ANIMALS)
    assert wrong == alone["answers"][0]
    assert wrong[0] == []
    assert wrong[1].startswith("PICTURE: ")
    assert f"{MOST_LABELS}" in too_many["answers"][0][1]
    assert_tags(too_many["answers"][1], recognizer, photos[0], ANIMALS)
    assert "no vocabulary" in none["answers"][0][1]


def test_a_batch_that_a_model_refuses_is_tried_one_by_one(server: Server, recognizer: Recognizer, photos: list[Path]) -> None:
    (found,) = ask(server, "http", {"pictures": [photos[0]] * 9, "labels": [ANIMALS] * 9})  # the stand-in fails from 7 on
    for answer in found["answers"]:
        assert_tags(answer, recognizer, photos[0], ANIMALS)


def test_a_full_queue_refuses(server: Server, recognizer: Recognizer, photos: list[Path]) -> None:
    requests = [{"pictures": [photos[0]], "labels": [ANIMALS]}] * 40
    found = ask(server, "http", *requests, model="narrow")
    failures = [each["failure"] for each in found if "failure" in each]
    assert all("maximum queue size" in failure for failure in failures)
    assert 0 < len(failures) < len(requests)
    for each in found:
        if "answers" in each:
            assert_tags(each["answers"][0], recognizer, photos[0], ANIMALS)


@protocols
def test_the_example_of_a_client_runs(protocol: str, server: Server, recognizer: Recognizer, photos: list[Path]) -> None:
    url = ["--grpc", "--url", server.grpc] if protocol == "grpc" else ["--url", server.http]
    command = [python(), ROOT / "docs" / "examples" / "triton_client.py", photos[0], "--labels", *ANIMALS, *url, "--top", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ((best,),) = recognizer.recognize([photos[0]], ANIMALS, top=1)
    assert run.stdout == f"{photos[0]}: {best.label} {best.score:.3f}\n", run.stderr


def test_a_killed_front_model_fails_every_request_and_health_stays_ready(server: Server, photos: list[Path]) -> None:
    """As docs/triton.md says, so that the page is changed when Triton is."""
    (pid,) = stubs(server, "narrow")
    os.kill(pid, signal.SIGKILL)
    request = {"pictures": [photos[0]], "labels": [ANIMALS]}
    (failed,) = ask(server, "http", request, model="narrow")
    assert "failure" in failed
    assert server.status("/v2/models/narrow/ready") == 200
    assert server.status("/v2/health/ready") == 200
    (other,) = ask(server, "http", request)
    assert other["answers"][0][1] == ""
