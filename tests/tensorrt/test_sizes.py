"""SigRL at the size of ViT-B/16, and tiny, built for three generations of GPUs, without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch

from sigrl_deploy.config import Arch, GraphConfig, ModelConfig, Precision, TextConfig
from sigrl_deploy.export.onnx import export_text, export_visual
from sigrl_deploy.graphs.cutting import tower
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.model.towers import typed
from sigrl_deploy.tensorrt.build import Task, run_builder

CAPABILITIES = ["8.0", "8.9", "12.0"]
SIZES = {
    "ViT-B/16": (VisionConfig(224, 16, 768, 12, 12), TextConfig(512, 12, 8)),
    "tiny": (VisionConfig(80, 16, 96, 2, 4), TextConfig(64, 1, 2)),
}
GRAPH = (GraphConfig(512, 4, 32), GraphConfig(128, 1, 512))
LABELS = [[1, 512], [1006, 512], [4096, 512]]


@pytest.fixture(scope="module", params=SIZES)
def model(request: pytest.FixtureRequest) -> tuple[str, SigRL]:
    torch.manual_seed(0)
    vision, text = SIZES[request.param]
    return request.param, SigRL(ModelConfig(Arch.SIGRL, 512, 16, vision, text, GRAPH)).eval()


def graphs(model: SigRL, precision: Precision, folder: Path) -> Iterator[tuple[str, Path, dict[str, list[list[int]]]]]:
    """Both graphs, and the tower alone, with the least, best and most of each input."""
    size, cast = model.config.vision.image_size, typed(model, precision)
    pixels = {"pixels": [[batch, 3, size, size] for batch in (1, 1, 32)]}
    export_visual(cast, folder / "visual.onnx", precision)
    yield "visual", folder / "visual.onnx", pixels | {"label_embedding": LABELS, "graph_projection": LABELS}
    onnx.save(tower(onnx.load(folder / "visual.onnx")), folder / "tower.onnx")
    yield "tower", folder / "tower.onnx", pixels
    export_text(cast, folder / "text.onnx")
    yield "text", folder / "text.onnx", {"cached_embedding": LABELS, "token_ids": [[0, 4], [64, 16], [64, 77]]}


def test_engines_build_for_batches_to_32_and_labels_to_4096(
    model: tuple[str, SigRL], tmp_path: Path, show: Callable[[str], None]
) -> None:
    name, module = model
    precision = Precision.BF16 if name == "ViT-B/16" else Precision.FP16
    parameters = (
        {"visual": 90e6, "tower": 85e6, "text": 60e6} if name == "ViT-B/16" else dict.fromkeys(("visual", "tower"), 1e6)
    )
    for graph, path, shapes in graphs(module, precision, tmp_path):
        out = tmp_path / f"{graph}.engine"
        task = Task("tensorrt_rtx", str(path), str(out), shapes, None, None, CAPABILITIES, False, False, None)
        seconds = run_builder(task, tmp_path)
        size = out.stat().st_size
        assert size > 1.9 * parameters.get(graph, 0), "the weights are in it, at two bytes each"
        show(f"{name} {precision.value} {graph}: {size / 1e6:.0f} MB, {seconds} s, SM {' '.join(CAPABILITIES)}")
