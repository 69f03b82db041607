"""The config of an (ML)²P-Encoder, from the shapes of its tensors."""

from __future__ import annotations

import math

from sigrl_deploy.checkpoints.layouts import Checkpoint
from sigrl_deploy.config import Arch, ModelConfig
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.image_towers import STRIDE, Ml2pConfig

_MIXER = "visual.Channel_MLP.channel_mlp."


def ml2p_config(checkpoint: Checkpoint, arch: Arch, topk: int | None) -> ModelConfig:
    """Raises CheckpointError for a checkpoint with another backbone than VGG19-BN, or of tensors that do not fit."""
    if "vgg.features.0.weight" not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.path}: its backbone is no VGG19-BN (vgg.features.0.weight …); the code of the others, ResNet-50 and "
            "TResNet, is not published, so they cannot be used"
        )
    token_hidden, positions = checkpoint.shape(f"{_MIXER}mlp_token.dense_1.weight", 2)
    channel_hidden, vector = checkpoint.shape(f"{_MIXER}mlp_channel.dense_1.weight", 2)
    first, second, third = (checkpoint.shape(f"visual.ft_module.{number}.conv.weight", 4)[0] for number in range(3))
    grid = math.isqrt(positions)
    if grid * grid != positions:
        name = checkpoint.label(f"{_MIXER}mlp_token.dense_1.weight")
        raise CheckpointError(f"{checkpoint.path}: tensor {name} is for {positions} positions, expected a square number")
    tower = Ml2pConfig(
        image_size=grid * STRIDE,
        groups=checkpoint.shape("visual.Channel_MLP.channel_attn.temperature", 3)[0],
        width=checkpoint.shape("visual.vgg.features.0.weight", 4)[0],
        taps=(first, second, third),
        vector=vector,
        token_hidden=token_hidden,
        channel_hidden=channel_hidden,
    )
    try:
        return ModelConfig(arch, vector, topk or arch.default_topk, tower).checked()
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: is not a model that can be built ({error})") from None
