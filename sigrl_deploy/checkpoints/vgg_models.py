"""The configs of models with a VGG19: BiAM's, and a linear classifier's. The VGG19 is a file of its own."""

from __future__ import annotations

import math
from pathlib import Path

from sigrl_deploy.checkpoints.layouts import BIAM, LINEAR, VGG19, Checkpoint, load_checkpoint
from sigrl_deploy.checkpoints.model_config import chosen_arch
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import ModelConfig
from sigrl_deploy.errors import CheckpointError, UsageError
from sigrl_deploy.image_towers import STRIDE, BiamConfig, VggConfig

_OPTIONS = {BIAM: ("backbone", "heads"), LINEAR: ("backbone",)}  # by layouts without a VGG19 of their own
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)  # torchvision's numbers of VGG19's
_PUBLISHED_HEADS = 8  # of BiAM's checkpoint for NUS-WIDE


def load_backbone(options: CheckpointOptions, checkpoint: Checkpoint) -> Checkpoint | None:
    """The VGG19 that a checkpoint's tower begins with; None where it has none, or holds it itself.

    Raises UsageError where it is not given, or given and not needed, CheckpointError where the file is no VGG19.
    """
    path = options.backbone
    for name in ("backbone", "heads"):
        value = getattr(options, name)
        if value is not None and name not in _OPTIONS.get(checkpoint.layout, ()):
            problem = f"has no use with {checkpoint.path}, a {checkpoint.layout} checkpoint; leave it out"
            raise UsageError(problem, argument=name, value=value)
    if checkpoint.layout not in _OPTIONS:
        return None
    if path is None:
        problem = f"{checkpoint.path} holds no VGG19; give torchvision's weights (vgg19-dcbb9e9d.pth)"
        raise UsageError(problem, argument="backbone")
    if not Path(path).is_file():
        raise UsageError("no such file; expected torchvision's vgg19 weights", argument="backbone", value=path)
    backbone = load_checkpoint(path)
    if backbone.layout != VGG19:
        raise CheckpointError(f"{path}: is a {backbone.layout} checkpoint; expected torchvision's vgg19 (features.0.weight …)")
    if {f"features.{number}.weight" for number in _CONVOLUTIONS} != {
        name for name in backbone.tensors if name.startswith("features.") and name.endswith(".weight")
    }:
        problem = "its convolutions are not those of VGG19, as where it has batch norms or fewer layers"
        raise CheckpointError(f"{path}: {problem}; expected torchvision's vgg19 (vgg19-dcbb9e9d.pth)")
    return backbone


def vgg_model_config(checkpoint: Checkpoint, backbone: Checkpoint, options: CheckpointOptions) -> ModelConfig:
    """The model that a checkpoint and its VGG19 make.

    Raises UsageError for `heads`, CheckpointError for tensors that do not fit.
    """
    vgg = _vgg_config(backbone)
    arch = chosen_arch(checkpoint, options.arch)
    try:
        if checkpoint.layout == LINEAR:
            return ModelConfig(arch, vgg.hidden + 1, arch.default_topk, vgg).checked()
        channels = checkpoint.shape("visual.conv_3X3.body.weight", 4)[0]
        embed_dim = checkpoint.shape("visual.conv_1X1.body.weight", 4)[0]
        tower = BiamConfig(vgg, channels, _heads(checkpoint, options.heads, channels))
        return ModelConfig(arch, embed_dim, options.topk or arch.default_topk, tower).checked()
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: is not a model that can be built ({error})") from None


def _heads(checkpoint: Checkpoint, heads: int | None, channels: int) -> int:
    if heads is None:
        problem = f"is not in {checkpoint.path}; give the number that it was trained with, {_PUBLISHED_HEADS} for NUS-WIDE"
        raise UsageError(problem, argument="heads")
    if heads < 1 or channels % heads:
        raise UsageError(f"expected a divisor of the {channels} channels", argument="heads", value=heads)
    return heads


def _vgg_config(backbone: Checkpoint) -> VggConfig:
    width = backbone.shape("visual.vgg.features.0.weight", 4)[0]
    last = backbone.shape("visual.vgg.features.34.weight", 4)[0]
    hidden, columns = backbone.shape("visual.vgg.classifier.0.weight", 2)
    grid = math.isqrt(columns // last)
    if grid * grid * last != columns:
        name = backbone.label("visual.vgg.classifier.0.weight")
        raise CheckpointError(
            f"{backbone.path}: tensor {name} has {columns} columns, expected {last} for each place of a square"
        )
    try:
        return VggConfig(grid * STRIDE, width, hidden).checked()
    except ValueError as error:
        raise CheckpointError(f"{backbone.path}: is not a VGG19 that can be built ({error})") from None
