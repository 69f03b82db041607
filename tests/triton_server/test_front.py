"""What the front model does with a batch, with its graphs called in this process instead of by a server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from numpy.typing import NDArray

from sigrl_deploy import Recognizer
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.errors import BundleError
from sigrl_deploy.labels.label_set import Label
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.triton_server import front as front_module
from sigrl_deploy.triton_server.engine import ModelError
from sigrl_deploy.triton_server.front import Answer, Front, Row
from sigrl_deploy.triton_server.repository import RepositoryOptions, write_repository

ANIMALS, THINGS = (b"cat", b"dog", b"horse"), (b"rocket", b"cup of coffee", b"table", b"boat", b"house")
TEMPLATES = [f"{i} {{label}}" for i in range(201)]  # times two wordings, more than the 400 that may be encoded
# Scores of one graph, alone and in a batch, differ by the order of fp32 sums.
CLOSE = 1e-5


class Models:
    """Runs the repository's graphs, and counts."""

    def __init__(self, repository: Path) -> None:
        self._sessions = {
            path.parents[1].name: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for path in repository.glob("*/1/model.onnx")
        }
        self.batches: list[int] = []  # pictures of each call
        self.texts = 0  # calls that encode some
        self.most_pictures = 100

    def __call__(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, FloatArray]:
        if "pixels" in inputs:
            self.batches.append(len(inputs["pixels"]))
            if self.batches[-1] > self.most_pictures:
                raise ModelError("no memory")
        self.texts += bool(len(inputs.get("token_ids", ())))
        return dict(zip(outputs, self._sessions[model].run(list(outputs), dict(inputs)), strict=True))


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(RepositoryOptions(bundle, folder))
    return folder


@pytest.fixture
def models(repository: Path) -> Models:
    return Models(repository)


@pytest.fixture
def front(repository: Path, models: Models) -> Iterator[Front]:
    opened = Front(repository / "sigrl" / "1" / "bundle", models, most_labels=400)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def recognizer(bundle: Path) -> Recognizer:
    return Recognizer(bundle, device="cpu", cache_dir=False)


@pytest.fixture(scope="module")
def pictures(photos: list[Path]) -> list[bytes]:
    return [photo.read_bytes() for photo in photos[:4]]


def tags(answer: Answer | ModelError) -> list[Prediction]:
    assert isinstance(answer, Answer)
    assert answer.error == ""
    return list(answer.predictions)


def error(answer: Answer | ModelError) -> str:
    assert isinstance(answer, Answer)
    assert answer.predictions == ()
    assert "\n" not in answer.error
    return answer.error


def same(found: Sequence[Prediction], expected: Sequence[Prediction]) -> bool:
    names = [p.label for p in found] == [p.label for p in expected]
    return names and all(abs(a.score - b.score) < CLOSE for a, b in zip(found, expected, strict=True))


def test_each_row_gets_its_own_labels_top_and_threshold(
    front: Front, models: Models, recognizer: Recognizer, pictures: list[bytes]
) -> None:
    first, second, third, fourth = pictures
    rows = [Row(first, ANIMALS), Row(second, THINGS, top=2), Row(third, ANIMALS, threshold=0.2), Row(fourth, THINGS)]
    answers = front.answer(rows)
    assert models.batches == [2, 2]  # one call for each set of labels
    for row, answer in zip(rows, answers, strict=True):
        labels = [label.decode() for label in row.labels or ()]
        (expected,) = recognizer.recognize([row.picture], labels, top=row.top, threshold=row.threshold)
        assert same(tags(answer), expected)


def test_a_mistake_costs_its_own_row_only(front: Front, pictures: list[bytes]) -> None:
    rows = [
        Row(b"no picture", ANIMALS),
        Row(pictures[0], ANIMALS),
        Row(b"", ANIMALS),
        Row(pictures[1], (b"cat", b"cat")),
        Row(pictures[1], ANIMALS, top=0),
        Row(pictures[1], ANIMALS, threshold=float("nan")),
        Row(pictures[1], tuple(b"label %d" % i for i in range(401))),
        Row(pictures[1], (b"\xff",)),
        Row(pictures[1], ()),
        Row(pictures[1]),
        Row(pictures[1], ANIMALS),
    ]
    answers = front.answer(rows)
    facts = (
        "PICTURE: ",
        None,
        "PICTURE: ",
        "LABELS: ",
        "TOP=0",
        "THRESHOLD=nan",
        "401",
        "UTF-8",
        "LABELS: ",
        "no vocabulary",
        None,
    )
    for answer, fact in zip(answers, facts, strict=True):
        if fact is None:
            assert len(tags(answer)) == 3
        else:
            assert fact in error(answer)


def test_a_label_file_s_json_is_taken_as_one_text(front: Front, recognizer: Recognizer, pictures: list[bytes]) -> None:
    sofa = {"name": "sofa", "synonyms": ["couch"], "parents": ["furniture"]}
    content = {"labels": ["cat", sofa, {"name": "street", "emit": False}]}
    (answer,) = front.answer([Row(pictures[0], (json.dumps(content).encode(), b""))])  # "" fills up a shorter row
    found = tags(answer)
    assert {p.label for p in found} == {"cat", "sofa", "furniture"}
    labels = [Label("cat"), Label("sofa", synonyms=("couch",), parents=("furniture",)), Label("street", emit=False)]
    assert same(found, *recognizer.recognize([pictures[0]], labels))


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ('{"labels": ["cat"], "background": "/etc/hostname"}', "reads no files"),
        ('{"labels": ["cat"', "expected JSON"),
        ('{"labels": [' + '{"name": ' * 100_000, "labels"),
        (json.dumps({"labels": [{"name": "cat", "synonyms": ["pet"], "templates": TEMPLATES}]}), "402"),
        (json.dumps({"labels": [f"label {i}" for i in range(150)], "background": "common"}), "with its background"),
        ('{"labels": ["cat"], "labels": []}', "twice"),
        ('{"labels": ["' + "x" * (1 << 22) + '"]}', "4 MB"),
    ],
    ids=["a path", "half", "deep", "many texts", "many with background", "twice", "large"],
)  # fmt: skip
def test_hostile_label_files_are_refused(text: str, fact: str, front: Front, pictures: list[bytes]) -> None:
    bad, good = front.answer([Row(pictures[0], (text.encode(),)), Row(pictures[0], ANIMALS)])
    assert fact in error(bad)
    assert tags(good)


def test_pictures_that_fail_together_are_tried_alone(front: Front, models: Models, pictures: list[bytes]) -> None:
    expected = [tags(answer) for answer in front.answer([Row(picture, ANIMALS) for picture in pictures])]
    models.most_pictures = 1
    found = [tags(answer) for answer in front.answer([Row(picture, ANIMALS) for picture in pictures])]
    assert models.batches == [4, 4, 1, 1, 1, 1]
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_a_failure_of_the_server_is_no_mistake_of_the_request(front: Front, models: Models, pictures: list[bytes]) -> None:
    models.most_pictures = 0
    (answer,) = front.answer([Row(pictures[0], ANIMALS)])
    assert isinstance(answer, ModelError)
    models.most_pictures = 100
    assert tags(*front.answer([Row(pictures[0], ANIMALS)]))


def test_labels_are_encoded_once_and_not_kept_without_end(
    front: Front, models: Models, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "_TEXTS_KEPT", 10)
    for _ in range(3):
        front.answer([Row(pictures[0], ANIMALS), Row(pictures[0], ANIMALS[::-1])])
    assert models.texts == 1
    for i in range(5):  # 3 + 3 + 5 texts and more are not kept together, and answers stay right
        front.answer([Row(pictures[0], (b"one %d" % i, b"two", b"three"))])
    before = models.texts
    front.answer([Row(pictures[0], (*THINGS, b"four", b"five"))])
    front.answer([Row(pictures[0], (b"two", b"three", b"six"))])
    assert models.texts == before + 2
    assert tags(*front.answer([Row(pictures[0], ANIMALS)]))


def test_a_damaged_front_bundle_is_found_at_the_start(repository: Path, models: Models, tmp_path: Path) -> None:
    damaged = shutil.copytree(repository / "sigrl" / "1" / "bundle", tmp_path / "bundle")
    (damaged / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Front(damaged, models, most_labels=400)
