"""Real runs of `sigrl-deploy evaluate`: bundles side by side on real pictures, broken ones among them."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score

from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Arch, Device, Precision
from sigrl_deploy.datasets.opening import open_dataset
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import LabelError, UsageError
from sigrl_deploy.evaluation.label_sets import choose_label_sets
from sigrl_deploy.evaluation.run import EvaluateOptions, evaluate, run_evaluate
from sigrl_deploy.evaluation.scoring import Model
from sigrl_deploy.labels.label_set import Label, label_set
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.vocabulary.vocabulary import Vocabulary
from tests.evaluation.conftest import LABELS
from tests.support.changed_bundles import change_graph, edit_manifest, nan_for_dark_pictures
from tests.support.processes import interruptible
from tests.support.refusals import assert_refused, refused

COMMAND = [sys.executable, "-m", "sigrl_deploy", "evaluate"]
# The same few float64 operations in another order.
TOLERANCE = 1e-12


@pytest.fixture(scope="session")
def fp16_bundle(export_tiny: Callable[..., Path]) -> Path:
    return export_tiny(Precision.FP16)


def _evaluate(*arguments: object, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    run = subprocess.run(command, **{"capture_output": True, "text": True, **options})
    assert run.returncode == status, run.stderr
    assert "Traceback" not in run.stderr
    return run


def _options(data: object, **given: Any) -> EvaluateOptions:
    values = dict.fromkeys(EvaluateOptions.__annotations__) | {
        "split": "test",
        "bundles": (),
        "label_sets": (),
        "engine": EngineOptions(device=Device.CPU),
    }
    return EvaluateOptions(**(values | {"data": str(data)} | given))


def _model(path: Path, scorer: Any) -> Model:
    return Model(path, "for a test", Arch.SIGRL, Precision.FP32, "cpu", scorer)


def test_two_bundles_on_a_folder(
    bundle: Path, fp16_bundle: Path, data: Path, targets: NDArray[np.int8], tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    run = _evaluate(data, "--bundle", bundle, "--bundle", fp16_bundle, "--batch-size", "3", "--out", out)
    found = json.loads(out.read_text())
    assert (found["data"], found["split"], found["unreadable"]) == (str(data), "test", [])
    assert [(model["path"], model["arch"], model["precision"]) for model in found["models"]] == [
        (str(bundle), "sigrl", "fp32"),
        (str(fp16_bundle), "sigrl", "fp16"),
    ]
    assert {"sigrl-deploy", "scikit-learn"} <= set(found["versions"])
    (label_set,) = found["label_sets"]
    assert (label_set["name"], label_set["labels"], label_set["pictures"]) == ("all", [*LABELS], 13)
    assert label_set["positives"] == (targets == 1).sum(axis=0).tolist()

    both = []
    for path, result in zip((bundle, fp16_bundle), label_set["results"], strict=True):
        recognizer = Recognizer(path, device="cpu")
        scores = recognizer.scores(sorted(data.glob("*.png")), recognizer.vocabulary(LABELS))
        known = targets != 0
        expected = [average_precision_score(targets[known[:, c], c] == 1, scores[known[:, c], c]) for c in range(5)]
        assert result["average_precision"] == pytest.approx([*expected, None], abs=TOLERANCE)
        assert result["map"] == pytest.approx(sum(expected) / 6, abs=TOLERANCE)
        assert result["map_present"] == pytest.approx(sum(expected) / 5, abs=TOLERANCE)
        hits = sum(int((row[np.argsort(-values)[:3]] == 1).sum()) for row, values in zip(targets, scores, strict=True))
        assert result["top_k"]["3"]["f1"] == pytest.approx(2 * hits / (3 * 13 + (targets == 1).sum()), abs=TOLERANCE)
        both.append((result, scores))
    (first, scores), (second, half_scores) = both
    assert first["difference"] is None
    assert second["difference"]["map"] == pytest.approx(second["map"] - first["map"], abs=TOLERANCE)
    # Batches of three and single pictures round their fp32 sums differently.
    assert second["difference"]["largest_score"] == pytest.approx(np.abs(half_scores - scores).max(), abs=1e-6)
    assert 0 < second["difference"]["largest_score"] < Precision.FP16.tolerance
    same = np.mean(scores.argmax(axis=1) == half_scores.argmax(axis=1))
    assert second["difference"]["top1_agreement"] == pytest.approx(same, abs=TOLERANCE)

    head, *rows = run.stdout.splitlines()[:3]
    cells = dict(zip(re.split(r"  +", head), re.split(r"  +", rows[1]), strict=True))
    assert cells["label set"] == "all"
    assert cells["mAP"] == f"{100 * second['map']:.2f}"
    assert cells["mAP present"] == f"{100 * second['map_present']:.2f}"
    assert cells["F1@5"] == f"{100 * second['top_k']['5']['f1']:.2f}"
    assert (cells["pictures"], cells["labels"]) == ("13", "6")
    assert "1 of 6 labels have no positive picture" in run.stdout


def test_a_checkpoint_is_the_reference_of_its_bundle(bundle: Path, weights: Path, data: Path) -> None:
    checkpoint = CheckpointOptions(weights / "sigrl.pth", text_tower=str(weights / "text.pth"))
    found = run_evaluate(_options(data, bundles=(bundle,), checkpoint=checkpoint))
    assert [(model.path, model.arch, model.precision, model.device) for model in found.models] == [
        (checkpoint.checkpoint, Arch.SIGRL, Precision.FP32, "cpu"),
        (bundle, Arch.SIGRL, Precision.FP32, "cpu"),
    ]
    assert "PyTorch" in found.models[0].description
    eager, exported = found.label_sets[0].results
    assert eager.difference is None
    assert exported.difference is not None
    assert 0 < exported.difference.largest_score < Precision.FP32.tolerance
    assert exported.difference.top1_agreement == 1


def test_a_warning_where_models_are_not_one_model(
    bundle: Path, weights: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = CheckpointOptions(weights / "sigrl.pth", text_tower=str(weights / "text.pth"), arch=Arch.MKT)
    run_evaluate(_options(data, bundles=(bundle,), checkpoint=checkpoint, limit=1))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{bundle} has arch sigrl, but {checkpoint.checkpoint} has mkt" in warnings
    assert f"{bundle} has topk 16, but {checkpoint.checkpoint} has 18" in warnings
    assert len(warnings) == 2


def test_a_warning_where_pictures_are_prepared_otherwise_under_the_same_name(
    bundle: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    listed = msgspec.structs.replace(Preprocess.for_contract("zero-shot", 80), mean=(0.1, 0.2, 0.3))
    edit_manifest(other, preprocess=listed.to_plain())
    run_evaluate(_options(data, bundles=(bundle, other), limit=1))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == f"{other} has preprocess zero-shot with mean (0.1, 0.2, 0.3), but {bundle} has zero-shot"


def test_a_bundle_is_no_different_from_its_copy(bundle: Path, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    found = run_evaluate(_options(data, bundles=(bundle, copy)))
    _, second = found.label_sets[0].results
    assert second.difference is not None
    assert second.metrics == found.label_sets[0].results[0].metrics
    assert (second.difference.map, second.difference.largest_score) == (0, 0)
    assert (second.difference.top1_agreement, second.difference.top3_agreement) == (1, 1)


def test_pictures_that_cannot_be_read_are_left_out_and_counted(bundle: Path, data: Path, tmp_path: Path) -> None:
    kept = [0, 2, 5, 8, 11, 12]
    lines = (data / "labels.csv").read_text().splitlines()
    (data / "kept.csv").write_text("\n".join([lines[0], *(lines[1 + i] for i in kept)]))
    for i in set(range(13)) - set(kept):
        (data / f"{i:02}.png").write_bytes(b"" if i % 2 else (data / f"{i:02}.png").read_bytes()[:3000])
    (data / "09.png").unlink()
    out = tmp_path / "results.json"
    run = _evaluate(data, "--bundle", bundle, "--batch-size", "2", "--out", out, status=1)
    found = json.loads(out.read_text())
    expected = run_evaluate(_options(data / "kept.csv", bundles=(bundle,))).label_sets[0]
    assert found["label_sets"][0]["pictures"] == expected.pictures == len(kept)
    assert found["label_sets"][0]["results"][0]["average_precision"] == pytest.approx(
        expected.results[0].metrics.average_precision, abs=TOLERANCE
    )
    broken = {Path(entry["picture"]).name: entry["error"] for entry in found["unreadable"]}
    assert [*broken] == [f"{i:02}.png" for i in range(13) if i not in kept]
    assert broken["01.png"].startswith("is empty")
    assert "No such file" in broken["09.png"]
    said = run.stderr.splitlines()
    assert sum(str(data) + "/0" in line for line in said) == 5
    assert said[-2:] == ["and 2 more pictures that cannot be read", "7 pictures could not be read and were left out"]


def test_without_a_readable_picture_there_is_one_error_and_no_file(bundle: Path, data: Path, tmp_path: Path) -> None:
    for picture in data.glob("*.png"):
        picture.write_bytes(b"no picture")
    out = tmp_path / "results.json"
    run = _evaluate(data, "--bundle", bundle, "--limit", "2", "--out", out, status=2)
    assert run.stderr.splitlines()[-1].startswith("error: no picture to evaluate")
    assert run.stdout == ""
    assert not out.exists()


def test_a_limit_takes_the_first_pictures(bundle: Path, data: Path, targets: NDArray[np.int8]) -> None:
    found = run_evaluate(_options(data, bundles=(bundle,), limit=4, batch_size=3)).label_sets[0]
    assert found.pictures == 4
    assert found.results[0].metrics.positives == tuple((targets[:4] == 1).sum(axis=0).tolist())


class ZeroShot:
    """The folder's pictures, with two labels held out."""

    def __init__(self, folder: Path) -> None:
        self.pictures = open_dataset(str(folder), "test")
        self.labels = self.pictures.labels
        self.label_sets: Mapping[str, tuple[str, ...]] = {
            "all": LABELS,
            "seen": LABELS[:4],
            "rare": LABELS[3:],
            "unseen": LABELS[4:],
        }
        self.image, self.name, self.targets = self.pictures.image, self.pictures.name, self.pictures.targets

    def __len__(self) -> int:
        return 3


def test_each_label_set_is_scored_with_its_own_vocabulary(bundle: Path, data: Path, targets: NDArray[np.int8]) -> None:
    dataset = ZeroShot(data)
    label_sets = choose_label_sets(dataset, [], None)
    assert [*label_sets] == ["unseen", "seen", "all"]
    recognizer = Recognizer(bundle, device="cpu")
    scored: list[tuple[tuple[str, ...], NDArray[np.float32]]] = []

    class Recording(Recognizer):
        def score_pixels(self, pixels: NDArray[np.float32], vocabulary: Vocabulary) -> NDArray[np.float32]:
            scored.append((vocabulary.labels, super().score_pixels(pixels, vocabulary)))
            return scored[-1][1]

    found = evaluate(dataset, [_model(bundle, Recording(bundle, device="cpu"))], label_sets, batch_size=3)
    assert [result.labels for result in found.label_sets] == [LABELS[4:], LABELS[:4], LABELS]
    assert [labels for labels, _ in scored] == [LABELS[4:], LABELS[:4], LABELS]
    assert [result.results[0].metrics.positives for result in found.label_sets] == [
        tuple((targets[:3, columns] == 1).sum(axis=0).tolist()) for columns in (slice(4, 6), slice(0, 4), slice(0, 6))
    ]
    pictures = [dataset.image(i) for i in range(3)]
    for labels, scores in scored:
        # Single pictures and a batch round their fp32 sums differently.
        np.testing.assert_allclose(scores, recognizer.scores(pictures, recognizer.vocabulary(labels)), atol=1e-5)


def test_label_sets_and_labels_can_be_chosen(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset, file = ZeroShot(data), tmp_path / "labels.txt"

    def chosen(names: list[str], *labels: str) -> dict[str, tuple[str, ...]]:
        given = label_set(labels) if labels else None
        return {name: found.names for name, found in choose_label_sets(dataset, names, given, file).items()}

    assert chosen(["rare", "all", "rare"]) == {"rare": LABELS[3:], "all": LABELS}
    with caplog.at_level("INFO"):
        assert chosen([], "rocket", "person") == {"unseen": ("rocket",), "seen": ("person",), "all": ("person", "rocket")}
    assert "all: 4 of 6 labels are not in" in caplog.text
    assert [*chosen([], "rocket")] == ["unseen", "all"]
    assert refused(lambda: chosen(["seen"], "rocket"), LabelError) == ("labels", file)
    assert_refused(lambda: chosen([], "sloth", "Rocket"), LabelError, "labels.txt", "sloth, Rocket (the truth has 'rocket')")
    assert refused(lambda: chosen(["common"])) == ("label_sets", "common")
    # What the data set does not know is scored beside the others; a synonym's truth is the label's.
    whole = choose_label_sets(dataset, ["all"], label_set(["zebra", Label("feline", ("cat",))]), file)["all"]
    assert whole.names == ("feline",)
    assert [label.name for label in whole.labels] == ["feline", "zebra"]
    assert "zebra: scored, not evaluated" in caplog.text


def test_a_score_that_is_not_finite_ends_the_run_and_names_picture_and_model(bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "copy"))
    change_graph(copied, "visual.onnx", nan_for_dark_pictures)
    for i, brightness in enumerate((255, 200, 0)):
        Image.new("RGB", (90, 90), (brightness,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("path,labels\n" + "\n".join(f"{i}.png,cat;dog" for i in range(3)))
    model = _model(copied, Recognizer(copied, device="cpu", cache_dir=False))
    dataset = open_dataset(str(tmp_path), "test")
    evaluating = partial(evaluate, dataset, [model], {"all": label_set(("cat", "dog"))}, batch_size=3)
    assert_refused(evaluating, UsageError, str(copied), "2.png", "fp32")


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"bundles": ()}, "`bundles`"),
        ({"bundles": (Path("missing"),)}, "bundles='missing': "),
        ({"label_sets": ("unseen",)}, "label_sets='unseen': "),
        ({"out": Path("results.csv")}, "out='results.csv': "),
        ({"out": Path("missing/results.json")}, "out='missing/results.json': "),
        ({"data": "missing"}, "missing"),
        ({"data": "folder:missing"}, "data='folder:missing': "),
        ({"split": "val"}, "`validation_share`"),
        ({"validation_share": 0.5}, "validation_share: "),
    ],
)
def test_a_wrong_option_is_refused_before_any_picture_is_read(
    bundle: Path, data: Path, given: dict[str, Any], fact: str
) -> None:
    with pytest.raises(UsageError) as raised:
        run_evaluate(replace(_options(data, bundles=(bundle,)), **given))
    assert fact in str(raised.value)


_BLOCKING = """
import sys
import importlib.util
blocked, known = set(sys.argv.pop(1).split(",")), importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in blocked else known(name, package)
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from sigrl_deploy.cli.main import main
main()
"""


def _blocked(modules: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _BLOCKING, modules, "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_bundle_is_evaluated_without_torch(bundle: Path, data: Path, tmp_path: Path) -> None:
    """From a cold cache, so that the text side runs too."""
    modules = "torch,torchvision,onnx,onnxscript,open_clip,safetensors,ml_dtypes"
    run = _blocked(modules, data, "--bundle", bundle, "--limit", "2", "--cache-dir", tmp_path / "cache")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("label set")


@pytest.mark.parametrize(
    ("module", "option", "start", "package", "extra"),
    [
        ("sklearn", "--bundle", "error: ", "scikit-learn", "evaluate"),
        ("torch", "--checkpoint", "error: --checkpoint ", "torch", "export"),
    ],
)
def test_without_a_package_the_error_names_package_and_extra(
    data: Path, module: str, option: str, start: str, package: str, extra: str
) -> None:
    run = _blocked(module, data, option, str(data / "labels.csv" if data.is_dir() else data))
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith(start)
    assert f"{package} is not installed" in line
    assert f"[{extra}]" in line


def test_an_interrupted_run_leaves_the_older_file_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    out.write_text("older")
    command = [*COMMAND, "scenes", "--bundle", str(bundle), "--out", str(out), "--overwrite"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("unseen: "):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert said.endswith("interrupted\n")
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert out.read_text() == "older"


def test_a_full_disk_loses_neither_the_table_nor_the_older_file(bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    out.write_text("older")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))  # noqa: E731
    warm = ["--bundle", bundle, "--limit", "2", "--cache-dir", tmp_path / "cache"]
    _evaluate(data, *warm)
    refused = _evaluate(data, *warm, "--out", out, status=2)
    assert f"--out {out}: exists already; replace it with --overwrite" in refused.stderr
    assert out.read_text() == "older"
    run = _evaluate(data, *warm, "--out", out, "--overwrite", status=2, preexec_fn=limit)
    assert run.stdout.startswith("label set")
    assert "results.json: cannot be written (File too large)" in run.stderr
    assert out.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data", "results.json"]
