"""The runtime: pictures in, tags out, against an independent pipeline; and bundles that are not what they should be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torchvision import transforms

import sigrl_deploy
from sigrl_deploy import Recognizer, SigRLError, read_labels
from sigrl_deploy.checkpoints.building import add_text_tower, build_model
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.errors import BundleError, LabelError, ScoreError, UsageError
from sigrl_deploy.export.parity import LABELS
from sigrl_deploy.model import materialised
from sigrl_deploy.recognizer import _warn_of_few
from sigrl_deploy.tagging.tagging import tag_pictures

TOLERANCE = 1e-5  # fp32 scores within ±1, of one graph run in another order


@pytest.fixture(scope="module")
def recognizer(bundle: Path) -> Recognizer:
    return Recognizer(bundle, device="cpu")


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_public_names() -> None:
    assert len(sigrl_deploy.__all__) <= 8
    for name in sigrl_deploy.__all__:
        assert getattr(sigrl_deploy, name).__doc__


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
    assert recognizer.recognize(photos[:1], vocabulary)[0][0].evidence is None


def test_no_picture_and_a_lone_picture(recognizer: Recognizer, photos: list[Path]) -> None:
    vocabulary = recognizer.vocabulary(["cat", "cup"])
    assert recognizer.scores([], vocabulary).shape == (0, 2)
    assert recognizer.recognize([], vocabulary) == []
    with pytest.raises(UsageError, match=r"cat\.jpg: is one picture.*brackets"):
        recognizer.recognize("cat.jpg", vocabulary)


def test_a_vocabulary_belongs_to_its_bundle(recognizer: Recognizer, copied: Path, photos: list[Path]) -> None:
    edit(copied, template="a picture of a {label}")
    other = Recognizer(copied, cache_dir=False)
    with pytest.raises(UsageError, match="made by another bundle"):
        recognizer.scores(photos, other.vocabulary(["cat", "cup"]))
    with pytest.raises(UsageError, match="is a list; make one with"):
        recognizer.scores(photos, ["cat", "cup"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected one of auto, cpu, cuda"):
        Recognizer(copied, device="gpu")


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


def test_threads_share_a_recognizer(bundle: Path, photos: list[Path]) -> None:
    recognizer = Recognizer(bundle, cache_dir=False)
    expected = recognizer.scores(photos, recognizer.vocabulary(["cat", "cup"]))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: recognizer.scores([path], recognizer.vocabulary(["cat", "cup"])), photos * 3))
    assert np.abs(np.concatenate(found) - np.tile(expected, (3, 1))).max() < TOLERANCE


def test_a_missing_label_file_and_a_bundle_without_vocabulary(recognizer: Recognizer) -> None:
    with pytest.raises(LabelError, match=r"carries no vocabulary.*--labels"):
        recognizer.vocabulary()
    with pytest.raises(LabelError, match=r"missing\.txt: cannot be read"):
        recognizer.vocabulary("missing.txt")


def test_cuda_without_a_cuda_provider_is_refused(bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    missing = r"there is no GPU: .*doctor" if not torch.cuda.is_available() else "onnxruntime-gpu"
    with pytest.raises(UsageError, match=rf"--device cuda: .*{missing}.*--device cpu"):
        Recognizer(bundle, device="cuda")


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
    with pytest.raises(UsageError, match="threads is 0, expected at least 1"):
        Recognizer(bundle, threads=0)


def test_memory_that_does_not_hold_a_batch_is_one_error_that_names_it(
    recognizer: Recognizer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.broadcast_to(np.float32(0), (3, 2**22, 2**22))  # takes no memory, and a batch all there is
    monkeypatch.setattr(recognizer, "pixels", lambda path: picture)
    paths = list(map(str, photos))
    with pytest.raises(UsageError, match="--batch-size 4: there is not enough memory; give a smaller one"):
        list(tag_pictures(recognizer, recognizer.vocabulary(["cat", "dog"]), paths, batch_size=4))


@pytest.mark.parametrize(("labels", "warned"), [(1, True), (9, True), (10, False)])
def test_few_labels_are_warned_of_once(
    recognizer: Recognizer, labels: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_few.cache_clear()
    for _ in range(2):
        recognizer.vocabulary([f"label {i}" for i in range(labels)])
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


@pytest.mark.parametrize("name", ["visual.onnx", "text.onnx", "tokenizer.json"])
def test_a_changed_or_missing_file_is_refused(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: differs from the manifest's sha256"):
        Recognizer(copied)
    (copied / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: missing from the bundle"):
        Recognizer(copied)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99, this release reads versions 2 and 3"),
        ({"files": {"../outside.onnx": "0" * 64}}, "files"),
        ({"files": {"/etc/hostname": "0" * 64}}, "files"),
        ({"arch": "resnet"}, "arch"),
        ({"preprocess": {"resize": 3}}, "preprocess"),
        ({"unknown": 1}, "unknown"),
        ({"variants": {}}, "variants"),
        ({"files": {"a\0b": "0" * 64}}, "files"),
        ({"files": ["visual.onnx"]}, "files"),
        ({"topk": 0}, "topk"),
        ({"topk": "16"}, "topk"),
        ({"patch_size": 0}, "patch_size"),
        ({"image_size": 160}, "image_size is 160"),
        ({"embed_dim": 256}, "visual.onnx: its inputs are not those"),
        ({"arch": "mkt"}, "visual.onnx: its inputs are not those"),
        ({"text_identity": "free text"}, "text_identity"),
        ({"files": {"x" * 300: "0" * 64}}, "files"),
        ({"context_length": -1}, "context_length"),
        ({"context_length": 10**6}, "context_length"),
        ({"context_length": 2**33}, "context_length"),
        ({"context_length": True}, "context_length"),
        ({"embed_dim": 2**33}, "embed_dim"),
        ({"context_length": None}, "vocabulary.npz is missing from its files"),
        ({"template": "x"}, "template is 'x'"),
        ({"variants": {"fp32": {"visual": "text.onnx", "text": "visual.onnx"}}}, "text.onnx: its inputs are not those"),
        ({"variants": {"fp32": {"visual": "other.onnx", "text": "text.onnx"}}}, "other.onnx is missing from its files"),
    ],
)
def test_a_manifest_that_means_nothing_is_refused(copied: Path, changes: dict[str, object], message: str) -> None:
    (copied.parent / "outside.onnx").write_bytes(b"")
    edit(copied, **changes)
    with pytest.raises(SigRLError, match=message) as caught:
        Recognizer(copied, cache_dir=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_manifest_is_refused(copied: Path, content: bytes) -> None:
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Recognizer(copied)


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
    for labels, message in (
        (5, "labels: is a int, expected a list of text"),
        (b"cat", "labels: is a bytes"),
        ({"cat": 1}, "labels: is a dict"),
        (["cat", 5], r"labels\[1\]: is a int"),
        (["cat\0"], "holds a control character"),
        ((), "holds no labels"),
    ):
        with pytest.raises(LabelError, match=message):
            recognizer.vocabulary(labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("top", [0, -1, 1.5, None, "5"])
def test_a_top_that_is_no_count(recognizer: Recognizer, photos: list[Path], top: object) -> None:
    vocabulary = recognizer.vocabulary(["cat", "cup"])
    pixels = recognizer.pixels(photos[0])[None]
    with pytest.raises(UsageError, match=rf"top is {top!r}, expected a whole number above 0"):
        recognizer.recognize(photos[:1], vocabulary, top=top)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=rf"top is {top!r}"):
        recognizer.tag_pixels(pixels, vocabulary, top)  # type: ignore[arg-type]
    ((_, tags),) = recognizer.tag_pixels(pixels, vocabulary, np.int64(2))  # type: ignore[arg-type]
    assert len(tags) == 2


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((0, 3, 80, 80), np.float32), "of at least one picture"),
        (np.zeros((1, 3, 80, 81), np.float32), r"expected \[B, 3, 80, 80\]"),
        (np.zeros((3, 80, 80), np.float32), r"expected \[B, 3, 80, 80\]"),
        (np.zeros((1, 3, 80, 80)), "are float64, expected float32"),
        (np.zeros((1, 3, 80, 80), np.float16), "are float16, expected float32"),
        (np.zeros((1, 3, 80, 80), np.uint8), "are uint8, which this engine does not take"),
        ([[1.0]], "is a list, expected an array"),
    ],
)
def test_pixels_that_no_engine_takes(recognizer: Recognizer, pixels: object, message: str) -> None:
    vocabulary = recognizer.vocabulary(["cat", "cup"])
    for use in (recognizer.score_pixels, recognizer.tag_pixels):
        with pytest.raises(UsageError, match=message):
            use(pixels, vocabulary)  # type: ignore[arg-type]
    with pytest.raises(ScoreError):
        recognizer.score_pixels(np.full((1, 3, 80, 80), np.nan, np.float32), vocabulary)


def test_a_batch_that_does_not_fit_the_memory(bundle: Path) -> None:
    """In a process that may have 3 GB; a batch of 30,000 pictures asks for more at once."""
    script = """
import resource, sys
import numpy as np
from sigrl_deploy import Recognizer, SigRLError
recognizer = Recognizer(sys.argv[1], device="cpu", cache_dir=False)
vocabulary = recognizer.vocabulary(["cat", "cup"])
one = recognizer.score_pixels(np.zeros((1, 3, 80, 80), np.float32), vocabulary)
pixels = np.zeros((30_000, 3, 80, 80), np.float32)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
try:
    recognizer.score_pixels(pixels, vocabulary)
except SigRLError as error:
    print(error)
assert np.array_equal(recognizer.score_pixels(pixels[:1], vocabulary), one)
"""
    run = subprocess.run([sys.executable, "-c", script, str(bundle)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "no memory for pixels [30000, 3, 80, 80]" in run.stdout
    assert "smaller --batch-size" in run.stdout
