"""From weights to scores in a process that has torch, and neither open_clip, ftfy and platformdirs nor this package installed.

python bare_child.py sigrl.pth text.pth tokenizer.json out.npz label ...   # with the tree on PYTHONPATH
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ABSENT = ("open_clip", "ftfy", "wcwidth", "platformdirs")
UNINSTALLED = ("sigrl-deploy", "open_clip_torch", *ABSENT)


class Absent:
    """Finds nothing of what is absent, whatever lies on the path."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide() -> None:
    sys.meta_path.insert(0, Absent)  # type: ignore[arg-type]
    known = importlib.metadata.Distribution.from_name

    def from_name(name: str) -> importlib.metadata.Distribution:
        if name in UNINSTALLED:
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    importlib.metadata.Distribution.from_name = from_name  # type: ignore[method-assign, assignment]


def main(weights: Path, text: Path, tokenizer: Path, out: Path, labels: Sequence[str]) -> None:
    import numpy as np

    import sigrl_deploy
    from sigrl_deploy import Recognizer
    from sigrl_deploy.architectures import Contract
    from sigrl_deploy.bundle.manifest import MANIFEST, TOKENIZER, Manifest, Variant
    from sigrl_deploy.checkpoints.loading import load_model
    from sigrl_deploy.checkpoints.native import TrainedRecord, write_trained
    from sigrl_deploy.checkpoints.options import CheckpointOptions
    from sigrl_deploy.config import FUSED, Device, Precision
    from sigrl_deploy.engines.torch import TorchEngine
    from sigrl_deploy.export.parity import PHOTOS
    from sigrl_deploy.files import sha256_file
    from sigrl_deploy.pictures.preprocess import Preprocess
    from sigrl_deploy.pictures.reading import read_image
    from sigrl_deploy.version import tool_versions

    for module in pkgutil.walk_packages(sigrl_deploy.__path__, "sigrl_deploy."):
        # A server has a module for `model`, and `native_library` is for ctypes.
        if not module.name.endswith(("__main__", "triton_server.model", "cpu.native_library")):
            importlib.import_module(module.name)

    model = load_model(CheckpointOptions(weights, text_tower=str(text))).model
    config, folder = model.config, out.parent / "bundle"
    preprocess = Preprocess.for_contract(Contract.ZERO_SHOT, config.vision.image_size)
    template = config.arch.default_template
    folder.mkdir()
    write_trained(folder / "weights.safetensors", TrainedRecord(config, template, preprocess), model.state_dict())
    shutil.copy(tokenizer, folder / TOKENIZER)
    for name in ("visual.onnx", "text.onnx"):
        (folder / name).touch()
    manifest = Manifest(
        arch=config.arch,
        embed_dim=config.embed_dim,
        image_size=config.vision.image_size,
        patch_size=config.vision.patch_size,
        topk=config.topk,
        template=template,
        context_length=77,
        preprocess=preprocess,
        variants={Precision.FP32: Variant("visual.onnx", "text.onnx", "weights.safetensors")},
        files={path.name: sha256_file(path) for path in folder.iterdir()},
        source={},
        tools=tool_versions("torch", "open_clip_torch"),
        created="",
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")

    recognizer = Recognizer(folder, backend="torch", device="cpu")
    vocabulary = recognizer.vocabulary(labels)
    pixels = preprocess(read_image(PHOTOS / "cat.jpg"))[None]  # normalised, as the model takes them
    fused = TorchEngine(recognizer.bundle, Device.CPU, Precision.FP32, fused=FUSED)
    np.savez(
        out,
        versions=sorted(manifest.tools),
        home=sigrl_deploy.__file__,
        pixels=pixels,
        plain=recognizer.score_pixels(pixels, vocabulary),
        fused=fused.score(pixels, vocabulary),
    )


if __name__ == "__main__":
    hide()
    main(*map(Path, sys.argv[1:5]), sys.argv[5:])
