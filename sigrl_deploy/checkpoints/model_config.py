"""The config of the model that a checkpoint holds, from its record, or from its layout and the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from sigrl_deploy.checkpoints.layouts import BIAM, LINEAR, ML2P, SCPNET, VGG19, Checkpoint
from sigrl_deploy.checkpoints.ml2p import ml2p_config
from sigrl_deploy.checkpoints.open_clip_configs import ClipConfig, Shapes, fitting_configs
from sigrl_deploy.config import Arch, GraphConfig, ModelConfig, TextConfig
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.image_towers import HEAD_WIDTH, STRIDE, ResNetConfig, VisionConfig

_POOL = "visual.attnpool."
# By layout; the arch of the others is clip.
_ARCHES = {"SigRL": Arch.SIGRL, "MKT": Arch.MKT, SCPNET: Arch.SCPNET, BIAM: Arch.BIAM, ML2P: Arch.ML2P, LINEAR: Arch.LINEAR}
_MAX_WIDTH = 1024  # OpenAI's largest is ViT-L/14; the wider models of others have heads of width 80, 88 or 104


def model_config(
    checkpoint: Checkpoint, arch: Arch | None = None, topk: int | None = None, clip: ClipConfig | None = None
) -> ModelConfig:
    """The model that a checkpoint holds, without a text tower. `arch` None is inferred from the layout.

    Raises CheckpointError where the tensors are not of that architecture, or do not determine the config.
    """
    if checkpoint.layout == "text tower":
        raise CheckpointError(
            f"{checkpoint.path}: is a CLIP text tower alone; give it as `text_tower`, and a checkpoint with a ViT"
        )
    arch = chosen_arch(checkpoint, arch)
    if checkpoint.record is not None:
        return _recorded_config(checkpoint, checkpoint.record.config, arch, topk)
    if checkpoint.layout == ML2P:
        return ml2p_config(checkpoint, arch, topk)
    if arch.has_graph and checkpoint.layout != "SigRL":
        raise CheckpointError(
            f"{checkpoint.path}: a {checkpoint.layout} checkpoint without SigRL's tensors (SemanticDecoupling.fc3.weight …); "
            "give a SigRL checkpoint, or use `arch='mkt'`, `arch='clip-ft'` or `arch='clip'`"
        )
    if has_resnet(checkpoint):
        return _resnet_model(checkpoint, arch, topk, clip)
    if checkpoint.original("visual.class_embedding") not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {checkpoint.label('visual.class_embedding')} is missing, expected CLIP's ViT "
            "with a class token, or its ResNet; other vision towers are not supported"
        )
    embed_dim = checkpoint.shape("visual.proj", 2)[1]
    vision = clip.vision if clip else _vision_config(checkpoint)
    graph = _graph_configs(checkpoint, embed_dim) if arch.has_graph else ()
    with _buildable(checkpoint):
        return ModelConfig(arch, embed_dim, topk or arch.default_topk, vision, None, graph).checked()


def chosen_arch(checkpoint: Checkpoint, asked: Arch | None) -> Arch:
    """The architecture asked for, or the one that a checkpoint's layout or record names.

    Raises CheckpointError where labels would be matched by other rows than in training.
    """
    if checkpoint.layout == VGG19:
        raise CheckpointError(f"{checkpoint.path}: is a VGG19 alone; give it as `backbone`, and a checkpoint that uses it")
    own = checkpoint.record.config.arch if checkpoint.record else _ARCHES.get(checkpoint.layout, Arch.CLIP)
    if asked is not None and own.text_side is not asked.text_side:
        raise CheckpointError(
            f"{checkpoint.path}: holds a model of arch {own.value}, which cannot be used as {asked.value}; leave out `arch`, "
            "or give another checkpoint"
        )
    return asked or own


def has_resnet(checkpoint: Checkpoint) -> bool:
    """Whether the image tower is CLIP's ResNet."""
    return checkpoint.layout != "text tower" and checkpoint.original(f"{_POOL}positional_embedding") in checkpoint.tensors


def _resnet_model(checkpoint: Checkpoint, arch: Arch, topk: int | None, clip: ClipConfig | None) -> ModelConfig:
    if arch.has_local:
        raise CheckpointError(
            f"{checkpoint.path}: its image tower is a ResNet, which has no patches for {arch.value} to match; use "
            "`arch='clip'` or `arch='clip-ft'`"
        )
    embed_dim = checkpoint.shape(f"{_POOL}c_proj.weight", 2)[0]
    with _buildable(checkpoint):
        vision = clip.vision if clip else _resnet_config(checkpoint)
        return ModelConfig(arch, embed_dim, topk or arch.default_topk, vision).checked()


def _resnet_config(checkpoint: Checkpoint) -> ResNetConfig:
    width = checkpoint.shape("visual.conv3.weight", 4)[0]
    grid = _grid(checkpoint, f"{_POOL}positional_embedding")
    one, two, three, four = (checkpoint.count(f"visual.layer{stage}.") for stage in range(1, 5))
    return ResNetConfig(grid * STRIDE, width, (one, two, three, four)).checked()


@contextmanager
def _buildable(checkpoint: Checkpoint) -> Iterator[None]:
    """Turns a config's ValueError into a CheckpointError."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: is not a model that can be built ({error})") from None


def _recorded_config(checkpoint: Checkpoint, config: ModelConfig, arch: Arch, topk: int | None) -> ModelConfig:
    """The recorded config. Another architecture has its own default top-k, and leaves out the parts that it does not use."""
    if arch.has_graph and not config.arch.has_graph:
        raise CheckpointError(
            f"{checkpoint.path}: was trained as {config.arch.value} and has no SVFR or GMC; give a SigRL checkpoint, or leave "
            "out `arch`"
        )
    topk = topk or (config.topk if arch is config.arch else arch.default_topk)
    return replace(config, arch=arch, topk=topk, text=None, graph=config.graph if arch.has_graph else ())


def _openai_heads(checkpoint: Checkpoint, width: int) -> int:
    """The number of heads by OpenAI's convention. Raises CheckpointError for other towers, whose tensors do not show it."""
    if not checkpoint.openai or width % HEAD_WIDTH or width > _MAX_WIDTH:
        names = " or ".join(fitting_configs(checkpoint_shapes(checkpoint)))
        choice = f"{names} fit" if names else "none of open_clip's fits: give a .json file"
        raise CheckpointError(
            f"{checkpoint.path}: its tensors (width {width}) do not show the number of heads or the activation; "
            f"name the weights as NAME:PRETRAINED with `clip_config`, or their open_clip config ({choice})"
        )
    return width // HEAD_WIDTH


def checkpoint_shapes(checkpoint: Checkpoint) -> Shapes:
    """The sizes that the tensors of a checkpoint's towers show."""
    found: Shapes = {}
    if checkpoint.layout != "text tower" and checkpoint.original("visual.class_embedding") in checkpoint.tensors:
        width, _, patch, _ = checkpoint.shape("visual.conv1.weight", 4)
        grid = math.isqrt(checkpoint.shape("visual.positional_embedding", 2)[0] - 1)
        embed_dim = checkpoint.shape("visual.proj", 2)[1]
        found |= {"embed_dim": embed_dim, "vision.patch_size": patch, "vision.width": width, "vision.grid": grid}
        found["vision.layers"] = checkpoint.layers("visual.")
    elif has_resnet(checkpoint):
        embed_dim = checkpoint.shape(f"{_POOL}c_proj.weight", 2)[0]
        width = checkpoint.shape("visual.conv3.weight", 4)[0]
        found |= {
            "embed_dim": embed_dim,
            "vision.width": width,
            "vision.grid": _grid(checkpoint, f"{_POOL}positional_embedding"),
        }
    if checkpoint.has_text:
        vocab_size, width = checkpoint.shape("text.token_embedding.weight", 2)
        context, _ = checkpoint.shape("text.positional_embedding", 2)
        found |= {"text.width": width, "text.layers": checkpoint.layers("text."), "text.context_length": context}
        found["text.vocab_size"] = vocab_size
    return found


def _vision_config(checkpoint: Checkpoint) -> VisionConfig:
    width, _, patch, _ = checkpoint.shape("visual.conv1.weight", 4)
    heads = _openai_heads(checkpoint, width)
    grid = _grid(checkpoint, "visual.positional_embedding")
    layers = checkpoint.layers("visual.")
    with _buildable(checkpoint):
        return VisionConfig(grid * patch, patch, width, layers, heads).checked()


def _grid(checkpoint: Checkpoint, name: str) -> int:
    """Patches along each side, from the rows of a positional embedding."""
    tokens = checkpoint.shape(name, 2)[0]
    grid = round((tokens - 1) ** 0.5)
    if grid * grid != tokens - 1 or not grid:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {checkpoint.label(name)} has {tokens} rows, expected a square number of patches and "
            "one class token"
        )
    return grid


def text_config(checkpoint: Checkpoint) -> TextConfig:
    """The text tower that a checkpoint holds. Raises CheckpointError as `model_config` does."""
    vocab_size, width = checkpoint.shape("text.token_embedding.weight", 2)
    heads = _openai_heads(checkpoint, width)
    context = checkpoint.shape("text.positional_embedding", 2)[0]
    layers = checkpoint.layers("text.")
    with _buildable(checkpoint):
        return TextConfig(width, layers, heads, context, vocab_size).checked()


def _graph_configs(checkpoint: Checkpoint, dim: int) -> tuple[GraphConfig, ...]:
    """Two layers, `dim` → hidden → `dim`."""
    hidden = checkpoint.shape("gmc.layers.0.linear.weight", 2)[0]
    layers = []
    for i, (width_in, width_out) in enumerate([(dim, hidden), (hidden, dim)]):
        name = f"gmc.layers.{i}.attention"
        width_head = checkpoint.shape(name, 2)[1]
        if width_out % width_head:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {checkpoint.label(name)} is for heads of width {width_head}, expected a divisor of "
                f"the layer's width, {width_out}"
            )
        layers.append(GraphConfig(width_in, width_out // width_head, width_head))
    return tuple(layers)
