"""`sigrl-deploy verify`: backends side by side on pictures of one's own, against numbers worked out here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from sigrl_deploy import Recognizer
from sigrl_deploy.architectures import Contract
from sigrl_deploy.cli.main import main
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.evaluation.scoring import Model
from sigrl_deploy.evaluation.verify import Comparison, Verification, VerifyOptions, compare
from sigrl_deploy.evaluation.verify import verify as run_verify
from sigrl_deploy.evaluation.verify_table import table
from sigrl_deploy.pictures.preprocess import Preprocess
from tests.support.changed_bundles import edit_manifest


@pytest.fixture(scope="module")
def exported(export_tiny: Callable[..., Path]) -> Path:
    """The tiny model in fp32 and fp16, with the weights of the PyTorch engine."""
    return export_tiny(Precision.FP32, Precision.FP16, weights=True)


@pytest.fixture
def own(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "own"))


def verify(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments), "--device", "cpu"])


def verified(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "manifest.json").read_text())["verified"]


def test_the_checkpoint_against_everything_that_runs(own: Path, weights: Path, photos: list[Path], label_file: Path) -> None:
    arguments = [own, photos[0].parent, "--labels", label_file, "--checkpoint", weights / "sigrl.pth"]
    done = verify(*arguments, "--text-tower", weights / "text.pth")
    assert done.exit_code == 0, done.output
    rows = verified(own)
    assert [row["precision"] for row in rows] == ["fp32", "fp16"] * 3
    assert {row["description"].split()[0] for row in rows} == {"ONNX", "OpenVINO", "PyTorch"}
    assert all(row["reference"].startswith("checkpoint, PyTorch") for row in rows)
    assert all(row["within"] and row["pictures"] == 4 and row["labels"] == 100 for row in rows)
    for row in rows:
        assert 0 < row["mean_error"] <= row["largest_error"] < (1e-5 if row["precision"] == "fp32" else 5e-3)
        assert row["cosine"] > 0.999
        assert row["map"] is None
    assert "not run: tensorrt fp32" in done.output
    assert "4 pictures, 100 labels" in done.output
    assert all(len(line) <= 100 for line in done.stdout.splitlines() if not line.startswith("not run: "))


def test_the_checkpoint_s_pictures_are_prepared_as_the_bundle_s(
    own: Path, weights: Path, photos: list[Path], label_file: Path
) -> None:
    """By the fields in the manifest, which may be others than those of its contract's name."""
    listed = msgspec.structs.replace(Preprocess.for_contract(Contract.ZERO_SHOT, 80), mean=(0.1, 0.2, 0.3))
    edit_manifest(own, preprocess=listed.to_plain())
    arguments = [own, photos[0], "--labels", label_file, "--checkpoint", weights / "sigrl.pth", "--backend", "onnxruntime"]
    done = verify(*arguments, "--text-tower", weights / "text.pth")
    assert done.exit_code == 0, done.output


def test_a_second_run_takes_the_place_of_the_first(own: Path, photos: list[Path], label_file: Path) -> None:
    arguments = [own, photos[0], photos[1], "--labels", label_file, "--backend", "onnxruntime"]
    for _ in range(2):
        assert verify(*arguments).exit_code == 0
    (row,) = verified(own)
    assert (row["precision"], row["pictures"]) == ("fp16", 2)
    assert len(Recognizer(own, device="cpu", cache_dir=False).vocabulary(["cat"])) == 1


def test_past_the_tolerance_it_fails_and_says_by_what(own: Path, photos: list[Path], label_file: Path) -> None:
    done = verify(own, photos[0], "--labels", label_file, "--backend", "onnxruntime", "--tolerance", "1e-9")
    assert done.exit_code == 3
    assert re.search(r"fp16\b.* is ", done.output)
    assert "more than its tolerance of 1e-09" in done.output
    assert " !" in done.output
    (row,) = verified(own)
    assert row["within"] is False


def test_known_labels_give_map(own: Path, photos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels of one's own may be more than those of the file."""
    names = [path.name for path in photos]
    for path in photos:
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "labels.csv").write_text("path,labels\n" + "".join(f"{name},{Path(name).stem}\n" for name in names))
    done = verify(own, tmp_path, "--backend", "onnxruntime")
    assert done.exit_code == 0, done.output
    (row,) = verified(own)
    assert row["labels"] == len(photos)
    assert 0 < row["map"] <= 1
    (tmp_path / "more.txt").write_text("zebra\ncat\n")
    done = verify(own, tmp_path, "--backend", "onnxruntime", "--labels", tmp_path / "more.txt")
    assert done.exit_code == 0, done.output
    assert verified(own)[0]["labels"] == 2
    assert "add labels" not in caplog.text  # that is advice for who tags pictures


def test_an_unreadable_picture_is_left_out_and_named(
    own: Path, photos: list[Path], label_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    done = verify(own, photos[0], tmp_path / "broken.jpg", "--labels", label_file, "--backend", "onnxruntime")
    assert done.exit_code == 1
    assert "broken.jpg" in caplog.text
    assert "1 picture, 100 labels" in done.stdout
    assert verified(own)[0]["pictures"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--backend", "onnxruntime", "--precision", "fp32"],
            "so there is nothing to compare; give the --checkpoint that it was exported from, or leave out --backend and "
            "--precision",
        ),
        (["--precision", "bf16"], "holds only fp32, fp16"),
        (
            ["--backend", "tensorrt", "--precision", "fp16"],
            "--device cpu: ",
        ),
        (["--backend", "onnxruntime", "--backend", "tensorrt"], "--device cpu: "),
        (["--tolerance", "nan"], "--tolerance nan: expected a finite number"),
        (["--text-tower", "x.pth"], "--text-tower: is about a checkpoint"),
    ],
)
def test_what_cannot_be_compared(own: Path, photos: list[Path], label_file: Path, arguments: list[str], words: str) -> None:
    done = verify(own, photos[0], "--labels", label_file, *arguments)
    assert done.exit_code == 2, done.output
    assert words in done.output


def test_with_nothing_to_compare_what_to_do_stands_first_and_each_reason_once(
    export_tiny: Callable[..., Path], photos: list[Path], label_file: Path
) -> None:
    out = export_tiny(Precision.INT8)
    done = verify(out, photos[0], "--labels", label_file)
    assert done.exit_code == 2, done.output
    first, *others = [line for line in done.output.splitlines() if line.startswith(("error: ", "not run: "))]
    assert first.startswith(f"error: {out}: only ONNX Runtime")
    assert first.endswith("runs here, so there is nothing to compare; give the --checkpoint that it was exported from")
    assert [line.split(": ")[1] for line in others] == [
        "onnxruntime-tensorrt int8",
        "torch int8",
        "tensorrt int8",
        "openvino int8",
    ]


def test_a_backend_that_runs_no_precision_of_the_bundle_is_named(
    export_tiny: Callable[..., Path], photos: list[Path], label_file: Path
) -> None:
    """Nobody gave a precision, so the error is about the backend."""
    bundle = export_tiny(Precision.INT8)
    options = VerifyOptions(bundle, [str(photos[0])], label_file, backends=("onnxruntime", "openvino"), device="cpu")
    with pytest.raises(UsageError) as caught:
        run_verify(options)
    assert (caught.value.argument, caught.value.value) == ("backends", "openvino")
    assert "int8" in caught.value.problem
    done = verify(bundle, photos[0], "--labels", label_file, "--backend", "onnxruntime", "--backend", "openvino")
    assert done.exit_code == 2
    assert "error: --backend openvino: " in done.output


def test_the_numbers() -> None:
    model = Model(Path("x"), "x", Arch.SIGRL, Precision.FP16, "cpu", None)  # type: ignore[arg-type]
    exact = np.array([[3, 4, 0], [0, 0, 2]], np.float32) / 4
    scores = np.array([[4, 3, 0], [0, 0, 2]], np.float32) / 4
    found = compare(exact, scores, model, ["cat", "cup", "dog"], None, 3.5 / 4, None)
    assert (found.largest_error, found.tolerance, found.within) == (0.25, 5e-3, False)
    assert found.mean_error == pytest.approx(2 / 24)
    assert found.cosine == pytest.approx(24 / 25)
    assert (found.top1_agreement, found.top5_overlap) == (0.5, 1.0)
    assert found.flips == pytest.approx(2 / 6)
    assert found.flipping == {"cat": 1, "cup": 1}


def test_the_table_fits_a_terminal_whatever_an_engine_is_called() -> None:
    name = "PyTorch 2.11.0+cu130 on NVIDIA H100 80GB HBM3 (cuda:0), bf16, with svfr, match and gmc as kernels"
    worst = Comparison(name, "bf16", 3e-2, 1.2e-1, 3.4e-2, -0.123456, 1.0, 1.0, 1.0, 1.0)
    shown = table(Verification("checkpoint", 1.0, (worst,), {}, 0.01234, 1, 1, {}))
    head, reference, row, *_ = shown.splitlines()
    assert row.startswith("bf16 PyTorch 2.11.0+cu130 on ")
    assert reference.split() == ["reference:", "checkpoint", "100.00"]
    assert "0.03 !" in row
    assert "1 picture, 1 label." in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert len(head.split()) == 9
