"""The runtime: pictures in, predictions out, against an independent pipeline; and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torchvision import transforms

from sigrl_deploy import Recognizer, Vocabulary
from sigrl_deploy.checkpoints.building import add_text_tower, build_model
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.errors import LabelError, ScoreError, UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.parity import LABELS
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.labels.names import read_labels
from sigrl_deploy.model import materialised
from sigrl_deploy.recognizer.recognizer import _advise_more_labels
from tests.support.changed_bundles import edit_manifest
from tests.support.refusals import assert_refused, refused

TOLERANCE = 1e-5  # fp32 scores within ±1, of one graph run in another order


@pytest.fixture(scope="module")
def recognizer(bundle: Path) -> Recognizer:
    return Recognizer(bundle, device="cpu")


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@torch.inference_mode()
def test_scores_equal_the_reference_pipeline(recognizer: Recognizer, weights: Path, photos: list[Path]) -> None:
    """torchvision's preprocessing, open_clip's tokenizer and text tower, the materialised model: nothing of the runtime's."""
    checkpoint = load_checkpoint(weights / "sigrl.pth")
    model = build_model(checkpoint, model_config(checkpoint))
    add_text_tower(model, load_checkpoint(weights / "text.pth"))
    prepare = transforms.Compose(
        [
            transforms.Resize(91, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(80),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    labels = read_labels(LABELS)
    pixels = torch.stack([prepare(Image.open(path).convert("RGB")) for path in photos])
    token_ids = SimpleTokenizer()([f"There is a {label} in the scene" for label in labels])
    expected = materialised.forward(model, pixels, model.encode_text(token_ids)).numpy()
    scores = recognizer.scores(photos, recognizer.vocabulary(LABELS))
    assert scores.shape == (len(photos), len(labels))
    assert np.abs(scores - expected).max() < TOLERANCE


def test_tags_are_the_best_labels_in_order(recognizer: Recognizer, photos: list[Path]) -> None:
    vocabulary = recognizer.vocabulary(LABELS)
    scores = recognizer.scores(photos, vocabulary)
    for tags, row in zip(recognizer.recognize(photos, vocabulary, top=7), scores, strict=True):
        assert [tag.label for tag in tags] == [vocabulary.labels[i] for i in np.argsort(-row)[:7]]
        assert [tag.score for tag in tags] == sorted((tag.score for tag in tags), reverse=True)
    threshold = float(np.sort(scores[0])[-3])
    assert len(recognizer.recognize(photos[:1], vocabulary, threshold=threshold)[0]) == 3
    assert recognizer.recognize(photos[:1], vocabulary, threshold=2.0) == [[]]
    assert len(recognizer.recognize(photos[:1], recognizer.vocabulary(["cat", "cup"]), top=5)[0]) == 2


def test_evidence_shows_the_patches_behind_a_local_score(recognizer: Recognizer, photos: list[Path]) -> None:
    vocabulary = recognizer.vocabulary(LABELS)
    (tags,) = recognizer.recognize(photos[:1], vocabulary, top=3, evidence=True)
    local, _ = recognizer.engine.encode(recognizer.pixels(photos[0])[None], vocabulary)
    assert local is not None
    for tag in tags:
        assert tag.evidence is not None
        assert tag.evidence.shape == (5, 5)
        row = vocabulary.label_embedding[vocabulary.labels.index(tag.label)]
        assert np.allclose(tag.evidence.ravel(), local[0] @ row, atol=1e-3)  # values of several hundred, in fp32
    everything = vocabulary.label_embedding @ local[0].T
    deviations = (everything - everything.mean(axis=0)) / (everything - everything.mean(axis=0)).std()
    shown = [deviations[vocabulary.labels.index(tag.label)] for tag in tags]
    for tag, found in zip(tags, shown, strict=True):
        expected = ((found - 4) / (max(8.5, np.max(shown)) - 4)).clip(0, 1)
        assert tag.strength is not None
        assert np.allclose(tag.strength, expected.reshape(5, 5), atol=1e-3)
    (plain, *_) = recognizer.recognize(photos[:1], vocabulary)[0]
    assert (plain.evidence, plain.strength) == (None, None)
    assert recognizer.recognize(photos[:1], vocabulary, threshold=2.0, evidence=True) == [[]]


def test_no_picture_and_a_lone_picture(recognizer: Recognizer, photos: list[Path]) -> None:
    vocabulary = recognizer.vocabulary(["cat", "cup"])
    assert recognizer.scores([], vocabulary).shape == (0, 2)
    assert recognizer.recognize([], vocabulary) == []
    assert list(recognizer.stream([], vocabulary)) == []
    for use, argument in ((recognizer.recognize, "images"), (recognizer.scores, "images"), (recognizer.stream, "paths")):
        for lone in ("cat.jpg", photos[0]):
            assert refused(lambda use=use, lone=lone: use(lone, vocabulary)) == (argument, str(lone))
    assert refused(lambda: list(recognizer.stream([photos[0].read_bytes(), 5], vocabulary)))[0] == "paths"  # type: ignore[list-item]


def test_labels_may_be_a_list_a_file_a_vocabulary_or_the_bundles_own(
    bundle: Path, weights: Path, photos: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("cat\ncup\nrocket\n", encoding="utf-8")
    out = tmp_path / "with-labels"
    export_bundle(ExportOptions(weights / "sigrl.pth", out, text_tower=str(weights / "text.pth"), labels=file))
    recognizer = Recognizer(out, device="cpu", cache_dir=False)
    names = ["cat", "cup", "rocket"]
    kinds: list[Any] = [names, file, str(file), recognizer.vocabulary(file), None, iter(names)]
    for labels in kinds[:-1]:
        assert recognizer.vocabulary(labels).labels == ("cat", "cup", "rocket")
    expected = recognizer.scores(photos[:2], names)
    for labels in kinds[1:]:
        np.testing.assert_allclose(recognizer.scores(photos[:2], labels), expected, atol=TOLERANCE)
    best = [max(zip(row, names, strict=True))[1] for row in expected]
    for labels in kinds[:5]:
        assert [found[0].label for found in recognizer.recognize(photos[:2], labels)] == best
        assert [record.predictions[0].label for record in recognizer.stream(photos[:2], labels)] == best


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_batches_give_what_single_pictures_give(recognizer: Recognizer, photos: list[Path], batch_size: int) -> None:
    pictures, labels = [*photos, photos[0]], ["cat", "cup", "rocket", "sky", "tree"]
    alone = np.concatenate([recognizer.scores([picture], labels) for picture in pictures])
    np.testing.assert_allclose(recognizer.scores(pictures, labels, batch_size=batch_size), alone, atol=TOLERANCE)
    records = list(recognizer.stream(pictures, labels, batch_size=batch_size, top=2))
    assert [record.path for record in records] == list(map(str, pictures))
    found = recognizer.recognize(pictures, labels, batch_size=batch_size, top=2)
    for row, predictions, record in zip(alone, found, records, strict=True):
        best = np.argsort(-row, kind="stable")[:2]
        for ours in (predictions, record.predictions):
            assert [prediction.label for prediction in ours] == [labels[i] for i in best]
            np.testing.assert_allclose([prediction.score for prediction in ours], row[best], atol=TOLERANCE)
        np.testing.assert_allclose(record.scores, row, atol=TOLERANCE)


def test_a_closed_recognizer_holds_nothing_and_says_so(bundle: Path, photos: list[Path]) -> None:
    with Recognizer(bundle, device="cpu", cache_dir=False) as recognizer:
        vocabulary = recognizer.vocabulary(["cat", "cup"])
        pixels = recognizer.pixels(photos[0])[None]
        recognizer.score_pixels(pixels, vocabulary)
        engine = weakref.ref(recognizer.engine)
    assert engine() is None
    recognizer.close()
    for use in (
        lambda: recognizer.engine,
        lambda: recognizer.recognize(photos, vocabulary),
        lambda: recognizer.stream(photos, vocabulary),
        lambda: recognizer.scores(photos, vocabulary),
        lambda: recognizer.score_pixels(pixels, vocabulary),
        lambda: recognizer.vocabulary(["cat", "cup"]),
        lambda: recognizer.pixels(photos[0]),
    ):
        assert_refused(use, UsageError, str(recognizer.bundle.path))


def test_a_vocabulary_belongs_to_its_bundle(recognizer: Recognizer, copied: Path, photos: list[Path]) -> None:
    edit_manifest(copied, template="a picture of a {label}")
    other = Recognizer(copied, cache_dir=False)
    theirs, pixels = other.vocabulary(["cat", "cup"]), recognizer.pixels(photos[0])[None]
    for use in (lambda: recognizer.scores(photos, theirs), lambda: recognizer.score_pixels(pixels, theirs)):
        assert refused(use)[0] == "vocabulary"
    assert refused(lambda: recognizer.score_pixels(pixels, ["cat", "cup"]))[0] == "vocabulary"  # type: ignore[arg-type]
    own = Vocabulary(theirs.labels, theirs.label_embedding, theirs.graph_projection)  # arrays of unknown origin are taken
    assert recognizer.score_pixels(pixels, own).shape == (1, 2)
    assert refused(lambda: Recognizer(copied, device="gpu")) == ("device", "gpu")
    assert refused(lambda: Recognizer(copied, backend="tvm")) == ("backend", "tvm")


def test_every_kind_of_source_gives_the_same_scores(recognizer: Recognizer, photos: list[Path]) -> None:
    vocabulary = recognizer.vocabulary(["cat", "cup", "rocket"])
    image = Image.open(photos[0])
    sources = [photos[0], str(photos[0]), photos[0].read_bytes(), image, np.asarray(image)]
    scores = recognizer.scores(sources, vocabulary)
    assert (scores == scores[0]).all()


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_score_does_not_depend_on_the_batch(recognizer: Recognizer, photos: list[Path], batch: int) -> None:
    vocabulary = recognizer.vocabulary(LABELS)
    together = recognizer.scores(photos[:batch], vocabulary)
    alone = np.concatenate([recognizer.scores([path], vocabulary) for path in photos[:batch]])
    assert np.abs(together - alone).max() < TOLERANCE


def test_labels_in_another_order_score_the_same(recognizer: Recognizer, photos: list[Path]) -> None:
    labels = list(read_labels(LABELS))
    scores = recognizer.scores(photos[:1], recognizer.vocabulary(labels))
    backwards = recognizer.scores(photos[:1], recognizer.vocabulary(labels[::-1]))
    assert np.abs(scores - backwards[:, ::-1]).max() < TOLERANCE


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_threads_share_a_recognizer(bundle: Path, photos: list[Path], backend: str) -> None:
    """Each with a vocabulary of its own size, so that a buffer in common would show."""
    recognizer = Recognizer(bundle, backend=backend, device="cpu", cache_dir=False)
    jobs = [(photo, [f"label {i}" for i in range(count)]) for count in (3, 60, 17, 33) for photo in photos] * 2

    def scores(job: tuple[Path, list[str]]) -> np.ndarray:
        return recognizer.scores([job[0]], recognizer.vocabulary(job[1]))

    alone = [scores(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(scores, jobs), strict=True):
            assert np.abs(one - other).max() < TOLERANCE


def test_a_missing_label_file_and_a_bundle_without_vocabulary(recognizer: Recognizer) -> None:
    with pytest.raises(LabelError) as raised:
        recognizer.vocabulary()
    assert raised.value.argument == "labels"
    assert refused(lambda: recognizer.vocabulary("missing.txt")) == ("labels", "missing.txt")


def test_cuda_without_a_cuda_provider_is_refused(bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    assert refused(lambda: Recognizer(bundle, device="cuda", backend="onnxruntime")) == ("device", "cuda")


@pytest.mark.parametrize(("argument", "value"), [("device", "gpu"), ("backend", "onnx"), ("precision", "fp8")])
def test_an_unknown_choice_is_refused_at_once(tmp_path: Path, argument: str, value: str) -> None:
    assert refused(lambda: Recognizer(tmp_path, **{argument: value})) == (argument, value)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_runs_on_as_many_threads_as_are_asked_for(
    bundle: Path, photos: list[Path], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by what they compute in a second of work: one thread gives no more than a second of the CPU's time."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    alone = Recognizer(bundle, device="cpu", backend=backend, cache_dir=False, threads=1)
    assert alone.threads == 1
    assert Recognizer(bundle, device="cpu", backend=backend, cache_dir=False).threads == 5
    vocabulary, pixels = alone.vocabulary([f"label {i}" for i in range(300)]), np.stack([alone.pixels(photos[0])] * 16)
    start, used = time.monotonic(), time.process_time()
    while time.monotonic() < start + 1:
        alone.score_pixels(pixels, vocabulary)
    assert time.process_time() - used < 1.2 * (time.monotonic() - start)
    assert refused(lambda: Recognizer(bundle, threads=0)) == ("threads", 0)


@pytest.mark.parametrize(("labels", "warned"), [(1, True), (9, True), (10, False)])
def test_who_asks_for_tags_of_few_labels_is_advised_once(
    recognizer: Recognizer, photos: list[Path], labels: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"label {i}" for i in range(labels)]
    _advise_more_labels.cache_clear()
    recognizer.scores(photos[:1], names)
    assert caplog.records == []
    for _ in range(2):
        recognizer.recognize(photos[:1], names)
        recognizer.stream(photos[:1], names)
    assert ["add labels" in record.message for record in caplog.records if record.levelname == "WARNING"] == [True] * warned


def test_the_engine_is_named_once_with_its_reason(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="sigrl_deploy"):
        Recognizer(bundle, device="auto", cache_dir=False)
    (message,) = [record.message for record in caplog.records if "engine" in record.message]
    assert "ONNX Runtime" in message
    assert "cpu" in message


def test_a_copied_bundle_gives_the_same_scores(copied: Path, recognizer: Recognizer, photos: list[Path]) -> None:
    moved = Recognizer(copied, cache_dir=False)
    labels = ["cat", "cup", "rocket"]
    expected = recognizer.scores(photos, recognizer.vocabulary(labels))
    assert np.abs(moved.scores(photos, moved.vocabulary(labels)) - expected).max() < TOLERANCE


def test_memory_does_not_grow_with_the_label_count(bundle: Path, photos: list[Path]) -> None:
    """3,000 labels: GMC's pairwise tensor alone would take 18 GB, SVFR's first intermediate 150 MB a picture."""
    script = """
import sys
from pathlib import Path
from sigrl_deploy import Recognizer
recognizer = Recognizer(sys.argv[1], cache_dir=False)
vocabulary = recognizer.vocabulary([f"label {i}" for i in range(int(sys.argv[3]))])
recognizer.scores([sys.argv[2]], vocabulary)
(line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(line.split()[1]) / 1024)
"""
    peak = {}
    for labels in (100, 3000):
        command = [sys.executable, "-c", script, str(bundle), str(photos[0]), str(labels)]
        peak[labels] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # T and G Wbᵀ are 6 MB each; some copies of them and of the [3000, 25] similarity, but nothing of order P·C·D or C²·F.
    assert peak[3000] - peak[100] < 120


def test_labels_may_come_one_by_one(recognizer: Recognizer) -> None:
    assert recognizer.vocabulary(name for name in ("cat", "cup")).labels == ("cat", "cup")
    for labels, fact in (
        (5, "an int"),
        (b"cat", "a bytes"),
        ({"cat": 1}, "a dict"),
        (["cat", 5], "item 1"),
        (["cat\0"], "item 0"),
        ((), "labels: "),
    ):
        assert_refused(lambda labels=labels: recognizer.vocabulary(labels), LabelError, "labels: ", fact)


@pytest.mark.parametrize("top", [0, -1, 1.5, "5"])
def test_a_top_that_is_no_count(recognizer: Recognizer, photos: list[Path], top: object) -> None:
    for use in (recognizer.recognize, recognizer.stream):
        argument, value = refused(lambda use=use: use(photos[:1], ["cat", "cup"], top=top))
        assert (argument, value) == ("top", top)
    (predictions,) = recognizer.recognize(photos[:1], ["cat", "cup"], top=np.int64(2))  # type: ignore[arg-type]
    assert len(predictions) == 2


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), "0.5"])
def test_a_threshold_that_is_no_number(recognizer: Recognizer, photos: list[Path], threshold: object) -> None:
    for use in (recognizer.recognize, recognizer.stream):
        argument, value = refused(lambda use=use: use(photos[:1], ["cat", "cup"], threshold=threshold))
        assert (argument, value) == ("threshold", threshold)


@pytest.mark.parametrize(
    ("pixels", "value"),
    [
        (np.zeros((0, 3, 80, 80), np.float32), [0, 3, 80, 80]),
        (np.zeros((1, 3, 80, 81), np.float32), [1, 3, 80, 81]),
        (np.zeros((3, 80, 80), np.float32), [3, 80, 80]),
        (np.zeros((1, 3, 80, 80)), np.float64),
        (np.zeros((1, 3, 80, 80), np.float16), np.float16),
        (np.zeros((1, 3, 80, 80), np.uint8), np.uint8),
        ([[1.0]], None),
    ],
)
def test_pixels_that_no_engine_takes(recognizer: Recognizer, pixels: object, value: object) -> None:
    vocabulary = recognizer.vocabulary(["cat", "cup"])
    for use in (recognizer.score_pixels, lambda *given: list(recognizer.score_batches([given[0]], given[1]))):
        assert refused(lambda use=use: use(pixels, vocabulary)) == ("pixels", value)
    with pytest.raises(ScoreError):
        recognizer.score_pixels(np.full((1, 3, 80, 80), np.nan, np.float32), vocabulary)


def test_memory_that_runs_out(bundle: Path) -> None:
    """A large batch takes no more of it than its parts; what does not fit is one line, and loses nothing but itself."""
    script = """
import resource, sys
import numpy as np
from sigrl_deploy import Recognizer, SigRLError
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

def leave(megabytes):
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))

recognizer = Recognizer(sys.argv[1], device="cpu", cache_dir=False, threads=1)
few = recognizer.vocabulary(["cat", "cup"])
pixels, labels = np.zeros((1500, 3, 80, 80), np.float32), 100_000
pixels[1:] = 1
rows = np.random.default_rng(0).standard_normal((labels, few.label_embedding.shape[1]), np.float32)
many = Vocabulary(tuple(map(str, range(labels))), rows, rows)
one = recognizer.score_pixels(pixels[:1], few)
recognizer.score_pixels(pixels[:9], few)
leave(32)  # less than the batch's local features would take
scores = recognizer.score_pixels(pixels, few)
assert np.abs(scores[:1] - one).max() < 1e-6 and scores.shape == (1500, 2)
try:
    recognizer.score_pixels(pixels[:1], many)
except SigRLError as error:
    print(error)
assert np.array_equal(recognizer.score_pixels(pixels[:1], few), one)
"""
    run = subprocess.run([sys.executable, "-c", script, str(bundle)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "no memory for" in run.stdout
    assert "smaller `batch_size`" in run.stdout
