"""How far training moved SVFR and GMC, and what that did to the energies whose softmax weights the patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigrl_deploy.checkpoints.eager import EagerModel, embed_labels
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.datasets.scenes import SEEN, Scenes
from sigrl_deploy.model.sigrl import SigRL, encode_image
from sigrl_deploy.training.models import start_from
from sigrl_deploy.training.recipes import TrainOptions, choose_recipe

PICTURES = 8  # of the validation split


def head_statistics(checkpoint: Path, options: TrainOptions) -> dict[str, Any]:
    """Of a trained SigRL checkpoint, and of the model that its run, with these options, started from.

    "weights": by tensor, its standard deviation before and after, and ‖after − before‖ / ‖before‖. "energies": the standard
    deviation of E1 and E2 over patches, averaged over labels and channels of some validation pictures, before and after.
    """
    torch.manual_seed(options.seed)  # as the run does, before it makes SVFR and GMC
    start = start_from(options, choose_recipe(options).contract)
    loaded = load_model(CheckpointOptions(checkpoint))
    before, after = start.model.eval(), loaded.model.eval()
    trained = {name: value for name, value in after.named_parameters() if name.startswith(("svfr.", "gmc."))}
    old = dict(before.named_parameters())
    weights = {
        name: {
            "before": float(old[name].std()),
            "after": float(value.std()),
            "moved": float((value - old[name]).norm() / old[name].norm()),
        }
        for name, value in trained.items()
        if value.ndim > 1 or name.endswith("attention")
    }
    scorer = EagerModel(after, loaded.preprocess, loaded.template, "cpu")
    pixels = torch.stack([torch.from_numpy(scorer.pixels(Scenes("val").image(i))) for i in range(PICTURES)])
    spread = {name: energy_spread(model, start.template, pixels) for name, model in (("before", before), ("after", after))}
    return {"weights": weights, "energies": {name: {t: values[name] for t, values in spread.items()} for name in ("E1", "E2")}}


@torch.inference_mode()
def energy_spread(model: SigRL, template: str, pixels: Tensor) -> dict[str, float]:
    """Pixels [B, 3, H, W] → the standard deviation over patches of E1 and E2 (docs/method.md), averaged over all else."""
    assert model.svfr is not None
    label_embedding = embed_labels(model, template, SEEN)
    patches, _ = encode_image(model.visual, pixels)
    labels = label_embedding.expand(len(pixels), -1, -1)
    semantic = model.svfr.decoupled(patches, labels)
    projection = model.graph_projection(label_embedding)
    assert projection is not None
    v = model.svfr.between(semantic, label_embedding, projection)
    return {"E1": _spread(model.svfr.decouple, patches, labels), "E2": _spread(model.svfr.reconstruct, patches, v)}


def _spread(linear: nn.Linear, patches: Tensor, labels: Tensor) -> float:
    energy = F.linear(torch.tanh(patches[:, None] * labels[:, :, None]), linear.weight)  # [B, C, P, D]
    return float(energy.std(dim=2).mean())
