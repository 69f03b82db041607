"""From a checkpoint and its config to the PyTorch model, with every tensor accounted for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec.structs import replace

from sigrl_deploy.checkpoints.layouts import OTHER_SYSTEMS, OWN_LAYOUT, Checkpoint
from sigrl_deploy.checkpoints.model_config import text_config
from sigrl_deploy.checkpoints.open_clip_configs import ClipConfig
from sigrl_deploy.checkpoints.weights import Stored
from sigrl_deploy.config import ModelConfig
from sigrl_deploy.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from sigrl_deploy.model.sigrl import SigRL


_VGG = "visual.vgg."


def build_model(checkpoint: Checkpoint, config: ModelConfig, backbone: Checkpoint | None = None) -> SigRL:
    """The eager fp32 model in evaluation mode, without a text tower. `backbone` holds its VGG19 where the checkpoint does not.

    Raises CheckpointError naming the tensor at fault.
    """
    import torch

    from sigrl_deploy.model.sigrl import SigRL

    with torch.device("meta"):
        model = SigRL(config)
    expected = model.state_dict()
    elsewhere = {name: tensor for name, tensor in expected.items() if backbone is not None and name.startswith(_VGG)}
    tensors = collect(checkpoint, {name: tensor for name, tensor in expected.items() if name not in elsewhere})
    if backbone is not None:
        tensors |= collect(backbone, elsewhere)
    model.load_state_dict(tensors, assign=True)
    if config.arch.has_graph:
        _check_shared_graph_weights(checkpoint)
    return model.eval().requires_grad_(False)


def add_text_tower(model: SigRL, checkpoint: Checkpoint, clip: ClipConfig | None = None) -> None:
    """Give the model a text tower: that of a CLIP checkpoint, of an MKT second-stage checkpoint, or a text tower alone.

    Raises CheckpointError where the file has no text tower, or its embedding width is not the model's.
    """
    import torch

    from sigrl_deploy.model.text import TextTransformer

    if not checkpoint.has_text:
        raise CheckpointError(
            f"{checkpoint.path}: a {checkpoint.layout} checkpoint holds no text tower; expected OpenAI's ViT-B-16.pt, or an "
            "open_clip or MKT second-stage checkpoint"
        )
    projection = checkpoint.shape("text.text_projection", 2)
    if projection[1] != model.config.embed_dim:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {checkpoint.label('text.text_projection')} has width {projection[1]}, and the "
            f"checkpoint's visual.proj {model.config.embed_dim}; give the text tower of the same CLIP model"
        )
    recorded = checkpoint.record and checkpoint.record.config.text
    config = recorded or (clip.text if clip else text_config(checkpoint))
    with torch.device("meta"):
        tower = TextTransformer(config, model.config.embed_dim)
    expected = {f"text.{name}": tensor for name, tensor in tower.state_dict().items()}
    tensors = collect(checkpoint, expected)
    tower.load_state_dict({name.removeprefix("text."): tensor for name, tensor in tensors.items()}, assign=True)
    model.text = tower.eval().requires_grad_(False)
    model.config = replace(model.config, text=config)


def _check_shared_graph_weights(checkpoint: Checkpoint) -> None:
    """GATv2 is trained with one matrix for both ends of an edge, saved twice. Two different ones would give wrong scores."""
    for layer in ("layer1", "output"):
        left, right = (checkpoint.tensors.get(f"GATv2_1.{layer}.linear_{side}.weight") for side in "lr")
        if left is not None and right is not None and not left.read().float().equal(right.read().float()):
            raise CheckpointError(
                f"{checkpoint.path}: tensors {checkpoint.prefix}GATv2_1.{layer}.linear_l.weight and linear_r.weight differ, "
                "expected one shared matrix"
            )


def collect(checkpoint: Checkpoint, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors in fp32, by our names.

    Raises CheckpointError where one is missing, has the wrong shape or is not finite, or where a tower's tensor has no place in
    the model. Shapes are compared before anything is read.
    """
    stored = {name: _matching(checkpoint, name, tuple(like.shape)) for name, like in expected.items()}
    _refuse_leftovers(checkpoint, expected)
    found = {}
    for name, like in expected.items():
        tensor = stored[name].read().float()
        if not all(math.isfinite(extreme) for extreme in tensor.aminmax()):  # both are NaN where any value is
            label = checkpoint.label(name)
            raise CheckpointError(f"{checkpoint.path}: tensor {label} holds NaN or infinite values; the training run diverged")
        found[name] = tensor.reshape(like.shape).contiguous()
    return found


def _matching(checkpoint: Checkpoint, name: str, expected: tuple[int, ...]) -> Stored:
    """The file's tensor for one of ours. Raises CheckpointError unless it is there and has the expected shape."""
    tensor = checkpoint.tensors.get(checkpoint.original(name))
    label = checkpoint.label(name)
    if tensor is None:
        raise CheckpointError(f"{checkpoint.path}: tensor {label} is missing, expected shape {list(expected)}")
    checkpoint.check_float(name, tensor)
    reference = name.endswith(".attention") and checkpoint.layout != OWN_LAYOUT
    shape = (1, *expected) if reference else expected
    if tensor.shape != shape:
        raise CheckpointError(f"{checkpoint.path}: tensor {label} has shape {list(tensor.shape)}, expected {list(shape)}")
    return tensor


def _refuse_leftovers(checkpoint: Checkpoint, expected: dict[str, Tensor]) -> None:
    """Raise CheckpointError for an unused tensor in a part of the model, such as a further layer or a layer scale.

    The forward pass would leave it out.
    """
    left = sorted(checkpoint.leftovers(set(expected)))
    if left:
        advice = "name the checkpoint's open_clip config with `clip_config`"
        if checkpoint.layout in OTHER_SYSTEMS:
            advice = "give a checkpoint of the published network"
        raise CheckpointError(f"{checkpoint.path}: tensor {checkpoint.prefix}{left[0]} has no place in the model; {advice}")
