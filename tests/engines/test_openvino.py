"""The OpenVINO engine against the eager fp32 model in every float precision; what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from open_clip.tokenizer import SimpleTokenizer

from sigrl_deploy import Recognizer
from sigrl_deploy.checkpoints.building import add_text_tower, build_model
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.cli.main import main
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.errors import BundleError, UsageError
from sigrl_deploy.export.parity import LABELS
from sigrl_deploy.files import sha256_file
from sigrl_deploy.labels.names import read_labels
from sigrl_deploy.model import materialised
from tests.support.refusals import assert_refused, refused

pytest.importorskip("openvino", reason="openvino is not installed")

FP32 = 1e-5  # scores within ±1, of one graph in another order of operations
COUNTS = (1, 7, 81)
FLOATS = (Precision.FP32, Precision.FP16, Precision.BF16)


def openvino(bundle: Path) -> Recognizer:
    return Recognizer(bundle, backend="openvino", cache_dir=False)


@pytest.fixture(scope="module")
def exported(export_tiny: Callable[..., Path]) -> Callable[[Precision], Path]:
    return export_tiny


@pytest.fixture(scope="module")
def expected(bundle: Path, weights: Path, photos: list[Path]) -> dict[int, np.ndarray]:
    """Scores [photos, C] of the first C labels: open_clip's tokenizer and the materialised model, in fp32."""
    checkpoint = load_checkpoint(weights / "sigrl.pth")
    model = build_model(checkpoint, model_config(checkpoint))
    add_text_tower(model, load_checkpoint(weights / "text.pth"))
    recognizer = Recognizer(bundle, device="cpu", cache_dir=False)
    pixels = torch.from_numpy(np.stack([recognizer.pixels(path) for path in photos]))
    found = {}
    with torch.inference_mode():
        for count in COUNTS:
            token_ids = SimpleTokenizer()([f"There is a {label} in the scene" for label in read_labels(LABELS)[:count]])
            found[count] = materialised.forward(model, pixels, model.encode_text(token_ids)).numpy()
    return found


@pytest.mark.parametrize("precision", FLOATS)
def test_scores_equal_the_eager_model(
    exported: Callable[[Precision], Path], expected: dict[int, np.ndarray], photos: list[Path], precision: Precision
) -> None:
    """Its own default, bf16 where the CPU has that, would miss fp32's tolerance a hundred times over."""
    recognizer = openvino(exported(precision))
    assert recognizer.engine.description.startswith("OpenVINO")
    if precision is not Precision.BF16:
        assert recognizer.engine.description.endswith(f"{precision.value}, floats computed in f32")
    assert recognizer.engine.precision is precision
    tolerance = FP32 if precision is Precision.FP32 else precision.tolerance
    pixels = np.stack([recognizer.pixels(path) for path in photos])
    for count in COUNTS:
        vocabulary = recognizer.vocabulary(read_labels(LABELS)[:count])
        for batch in (1, 3):
            difference = recognizer.score_pixels(pixels[:batch], vocabulary) - expected[count][:batch]
            assert np.abs(difference).max() < tolerance, (count, batch)


@pytest.mark.parametrize("arch", [Arch.MKT, Arch.CLIP_FT, Arch.CLIP])
def test_other_architectures(arch: Arch, export_tiny: Callable[..., Path], photos: list[Path]) -> None:
    out = export_tiny(checkpoint="mkt", arch=arch, weights=True)
    ours, theirs = openvino(out), Recognizer(out, device="cpu", cache_dir=False)
    a, b = (r.scores(photos, r.vocabulary(LABELS)) for r in (ours, theirs))
    assert np.abs(a - b).max() < FP32


def rewritten(bundle: Path, out: Path, change: Callable[[onnx.ModelProto], None], **how: object) -> Path:
    """A copy of a bundle with another `visual.onnx`, and its hashes in the manifest."""
    shutil.copytree(bundle, out)
    model = onnx.load(out / "visual.onnx")
    change(model)
    onnx.save(model, out / "visual.onnx", **how)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"] |= {path.name: sha256_file(path) for path in out.glob("visual.onnx*")}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_weights_in_a_file_of_their_own(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    """As the exporter writes those above 2 GiB."""
    how = {"save_as_external_data": True, "location": "visual.onnx.data"}
    parted, whole = openvino(rewritten(bundle, tmp_path / "parted", lambda model: None, **how)), openvino(bundle)
    assert (tmp_path / "parted" / "visual.onnx.data").exists()
    a, b = (r.scores(photos, r.vocabulary(LABELS)) for r in (parted, whole))
    assert np.array_equal(a, b)


def test_memory_does_not_grow_with_the_label_count(bundle: Path, photos: list[Path]) -> None:
    """3,000 labels: GMC's pairwise tensor alone would take 18 GB, SVFR's first intermediate 150 MB a picture."""
    script = """
import sys
from pathlib import Path
from sigrl_deploy import Recognizer
recognizer = Recognizer(sys.argv[1], backend="openvino", cache_dir=False)
vocabulary = recognizer.vocabulary([f"label {i}" for i in range(int(sys.argv[3]))])
recognizer.scores([sys.argv[2]], vocabulary)
(line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(line.split()[1]) / 1024)
"""
    peak = {}
    for labels in (100, 3000):
        command = [sys.executable, "-c", script, str(bundle), str(photos[0]), str(labels)]
        peak[labels] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # OpenVINO keeps every array [C, D] of both graphs, some 25 of 6 MB; an intermediate [P, C, D] would be 150 MB more.
    assert peak[3000] - peak[100] < 220


def test_infer_takes_it_and_says_so(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ncup\nperson\nrocket\nsky\n")
    arguments = ["infer", str(photos[0]), "--bundle", str(bundle), "--labels", str(tmp_path / "labels.txt"), "--format", "csv"]
    tables = {}
    for backend in ("openvino", "onnxruntime"):
        done = CliRunner().invoke(main, [*arguments, "--backend", backend])
        assert done.exit_code == 0, done.output
        tables[backend] = [line.split(",")[1] for line in done.stdout.splitlines()]
    assert tables["openvino"] == tables["onnxruntime"]
    done = CliRunner().invoke(main, [*arguments, "--backend", "openvino", "--device", "cuda"])
    assert done.exit_code == 2
    assert "--device cuda: OpenVINO does not run there" in done.output


def test_what_it_cannot_run_is_refused_in_one_line(bundle: Path, exported: Callable[[Precision], Path], tmp_path: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        del model.functions[:]

    def resized(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 96

    for name, change in {"unknown": unknown, "resized": resized}.items():
        changed = rewritten(bundle, tmp_path / name, change)
        assert_refused(lambda changed=changed: openvino(changed), BundleError, "visual.onnx: ")
    int8 = exported(Precision.INT8)
    assert_refused(lambda: openvino(int8), BundleError, "int8", "OpenVINO")
    asked = partial(Recognizer, int8, backend="openvino", precision="int8")
    assert_refused(asked, UsageError, "precision='int8'", "`backend='onnxruntime'`")
    assert refused(lambda: Recognizer(bundle, backend="openvino", device="cuda")) == ("device", "cuda")


def test_a_signal_after_several_engines_does_not_end_the_process(bundle: Path) -> None:
    """In a process of its own: on a CPU with AMX, OpenVINO's cores left the thread a freed stack for signal handlers."""
    code = (
        "import gc, os, signal, sys\n"
        "from sigrl_deploy import Recognizer\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "opened = [Recognizer(sys.argv[1], backend='openvino', cache_dir=False) for _ in range(3)]\n"
        "while opened:\n"
        "    del opened[0]\n"
        "    gc.collect()\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["handled"] * 3), done.stderr
