"""What the benchmarks run on: a random-weight checkpoint, its exports, label embeddings and pictures, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.random_weights import VARIANTS, images, label_embeddings, save, sigrl_shapes, tensors
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.config import Arch, Backend

if TYPE_CHECKING:
    from sigrl_deploy.model.sigrl import SigRL

CHECKPOINT = "sigrl.pth"
NAIVE = "naive.onnx"
CLIP = "clip"  # a contender: the checkpoint's CLIP alone
FUNCTION = "onnx-function"  # a contender: the bundle in ONNX Runtime without the native kernel
OURS = (*(backend.value for backend in Backend.named()), FUNCTION)  # those that run the model's bundle
IN_BUNDLES = (*OURS, CLIP)


def prepare(folder: Path, variant: str, labels: Sequence[int], pairs: Sequence[tuple[str, str]], device: str) -> None:
    """Make everything that deployments of these backends and precisions have before their first picture.

    Files that an interrupted run left in the folder are used again.
    """
    if not (folder / CHECKPOINT).exists():
        save(folder / CHECKPOINT, tensors(sigrl_shapes(VARIANTS[variant])))
    model = load(folder)
    for precision in dict.fromkeys(precision for backend, precision in pairs if backend in OURS):
        if not bundle_of(folder, precision).exists():
            _export(folder, bundle_of(folder, precision), precision, weights=("torch", precision) in pairs)
    if any(backend == CLIP for backend, _ in pairs) and not bundle_of(folder, CLIP).exists():
        _export(folder, bundle_of(folder, CLIP), "fp32", arch=Arch.CLIP_FT)
    if any(backend == "naive-onnx" for backend, _ in pairs) and not (folder / NAIVE).exists():
        export_materialised(model, folder / NAIVE)
    model = model.to(device)  # where the label graph of thousands takes a second
    for count in labels:
        if not vocabulary_file(folder, count).exists():
            _write_vocabulary(model, count, vocabulary_file(folder, count))


def bundle_of(folder: Path, name: str) -> Path:
    """A bundle of one precision, or of CLIP, as it would be deployed."""
    return folder / f"bundle-{name}"


def _export(folder: Path, bundle: Path, precision: str, arch: Arch | None = None, weights: bool = False) -> None:
    import torch

    from sigrl_deploy.config import Precision
    from sigrl_deploy.export.options import ExportOptions
    from sigrl_deploy.export.run import export_bundle

    names, embedding = folder / "labels.txt", folder / "label_emb.pt"
    names.write_text("\n".join(map(str, range(100))), encoding="utf-8")
    torch.save(torch.from_numpy(label_embeddings(100, seed=1)), embedding)
    export_bundle(
        ExportOptions(
            folder / CHECKPOINT,
            bundle,
            labels=names,
            arch=arch,
            label_embeddings=embedding,
            precisions=(Precision(precision),),
            weights=weights,
        )
    )


def load(folder: Path) -> SigRL:
    """The eager model of the folder's checkpoint."""
    from sigrl_deploy.checkpoints.building import build_model
    from sigrl_deploy.checkpoints.layouts import load_checkpoint
    from sigrl_deploy.checkpoints.model_config import model_config

    checkpoint = load_checkpoint(folder / CHECKPOINT)
    return build_model(checkpoint, model_config(checkpoint)).eval()


def vocabulary_file(folder: Path, labels: int) -> Path:
    return folder / f"vocabulary-{labels}.npz"


def _write_vocabulary(model: SigRL, labels: int, path: Path) -> None:
    """T, G and G Wbᵀ [C, D] of stand-in labels."""
    import torch

    from sigrl_deploy.files import replacing

    embedding = torch.from_numpy(label_embeddings(labels, seed=1)).to(model.device)
    assert model.gmc is not None
    assert model.svfr is not None
    with torch.inference_mode():
        graph = model.gmc(embedding)
        projection = model.svfr.graph_projection(graph)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        rows = {"label_embedding": embedding, "graph": graph, "graph_projection": projection}
        np.savez(stream, **{name: tensor.cpu().numpy() for name, tensor in rows.items()})


def export_materialised(model: SigRL, path: Path) -> None:
    """The naive export: the reference's operations as they stand, GMC cached, batch and labels dynamic."""
    import torch

    from sigrl_deploy.export.onnx import quiet
    from sigrl_deploy.files import replacing
    from sigrl_deploy.model import materialised

    class Materialised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor, label_embedding: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
            return materialised.forward(self.model, pixels, label_embedding, graph)

    size, dim = model.config.vision.image_size, model.config.embed_dim
    batch, labels = torch.export.Dim("batch"), torch.export.Dim("labels")
    inputs = torch.zeros(2, 3, size, size), torch.randn(7, dim), torch.randn(7, dim)
    with quiet():
        program = torch.onnx.export(
            Materialised(),
            inputs,
            dynamo=True,
            opset_version=20,
            input_names=["pixels", "label_embedding", "graph"],
            output_names=["scores"],
            dynamic_shapes=({0: batch}, {0: labels}, {0: labels}),
            verbose=False,
        )
    assert program is not None
    with replacing(path) as temporary:
        program.save(temporary)


def batch_of(count: int, size: int) -> FloatArray:
    """[count, 3, size, size] stand-ins for preprocessed pictures, for timing."""
    return images(count, size, seed=0)


def real_pictures(size: int) -> FloatArray:
    """[12, 3, size, size]: the package's photographs and scenes, for comparing scores."""
    from sigrl_deploy.architectures import Contract
    from sigrl_deploy.pictures.preprocess import Preprocess
    from sigrl_deploy.pictures.reading import read_image

    preprocess = Preprocess.for_contract(Contract.ZERO_SHOT, size)
    return np.stack([preprocess(read_image(path)) for path in real_files()])


def real_files() -> list[Path]:
    """The package's photographs and scenes."""
    import sigrl_deploy

    return sorted((Path(sigrl_deploy.__file__).parent / "data").glob("*/*.jpg"))
