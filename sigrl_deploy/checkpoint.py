"""Any checkpoint layout → the eager model. Layouts are recognised from tensor names; no code from a file is ever run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sigrl_deploy.clip_config import ClipConfig, Shapes, fitting_configs
from sigrl_deploy.config import Arch, GraphConfig, ModelConfig, TextConfig, VisionConfig, check_sizes, largest_size
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.trained import TrainedRecord, read_record
from sigrl_deploy.weights import Stored, read_weights

if TYPE_CHECKING:
    from torch import Tensor

    from sigrl_deploy.model.sigrl import SigRL

# Each layout: (prefix of our tensor names, prefix in the file), the first that fits wins.
_REFERENCE_VISION = [("visual.proj", "projection_dist"), ("visual.", "")]
OWN_LAYOUT = "sigrl-deploy"
_LAYOUTS: dict[str, list[tuple[str, str]]] = {
    OWN_LAYOUT: [("", "")],
    "SigRL": [
        ("svfr.decouple.", "SemanticDecoupling.fc3."),
        ("svfr.fuse.", "DecouplingSemantic.fc1."),
        ("svfr.reconstruct.", "DecouplingSemantic.fc3."),
        ("gmc.layers.0.linear.", "GATv2_1.layer1.linear_l."),
        ("gmc.layers.0.attention", "GATv2_1.layer1.attn.weight"),
        ("gmc.layers.1.linear.", "GATv2_1.output.linear_l."),
        ("gmc.layers.1.attention", "GATv2_1.output.attn.weight"),
        *_REFERENCE_VISION,
    ],
    "MKT": _REFERENCE_VISION,
    "CLIP": [("visual.", "visual."), ("text.", "")],
    "CustomTextCLIP": [("visual.", "visual."), ("text.", "text.")],
    "text tower": [("text.", "")],
}
_HEAD_WIDTH = 64  # of every model that OpenAI published
_MAX_WIDTH = 1024  # of OpenAI's largest, ViT-L/14; wider ones are others', with heads of 80, 88 or 104
_PREFIXES = ("module.f.feature_extractor.", "f.module.feature_extractor.", "f.feature_extractor.", "module.")


@dataclass(frozen=True)
class Checkpoint:
    """One file's tensors under the file's own names, less `prefix`, and the layout they are in.

    `record` is what our own training wrote beside them, None in every other layout.
    """

    path: str
    layout: str
    prefix: str
    tensors: dict[str, Stored]
    openai: bool  # heads and activation follow OpenAI's convention, known from the layout or from OpenAI's own archives
    record: TrainedRecord | None = None

    def original(self, name: str) -> str:
        """The file's name (without `prefix`) of one of our tensors."""
        for ours, theirs in _LAYOUTS[self.layout]:
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        raise KeyError(name)

    def label(self, name: str) -> str:
        """One of our tensors by the file's full name, for error messages."""
        return self.prefix + self.original(name)

    @property
    def has_text(self) -> bool:
        """Whether the file holds a CLIP text tower."""
        if self.record is not None:
            return self.record.config.text is not None
        return self.layout in ("CLIP", "CustomTextCLIP", "text tower")

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of one of our tensors, for reading dimensions off it."""
        tensor = self.tensors.get(self.original(name))
        if tensor is None:
            raise CheckpointError(
                f"{self.path}: tensor {self.label(name)} is missing, which a {self.layout} checkpoint has; "
                "give the file that training saved, whole"
            )
        self.check_float(name, tensor)
        if len(tensor.shape) != ndim or 0 in tensor.shape:
            raise CheckpointError(
                f"{self.path}: tensor {self.label(name)} has shape {list(tensor.shape)}, expected {ndim} dimensions above 0"
            )
        return tensor.shape

    def check_float(self, name: str, tensor: Stored) -> None:
        """Raise CheckpointError where one of our tensors is of whole numbers, sparse, quantised …"""
        if not tensor.is_float:
            raise CheckpointError(
                f"{self.path}: tensor {self.label(name)} is {tensor.dtype}; expected dense numbers in fp16, bf16, fp32 or fp64"
            )

    def layers(self, tower: str) -> int:
        """Number of transformer blocks below `tower` ("visual." or "text.")."""
        start = self.original(tower + "transformer.resblocks.")
        numbers = {name[len(start) :].split(".")[0] for name in self.tensors if name.startswith(start)}
        most = largest_size("layers")
        if not 0 < len(numbers) <= most:
            where = self.prefix + start[:-1]
            raise CheckpointError(f"{self.path}: has {len(numbers)} blocks below {where}, expected 1 to {most}")
        return len(numbers)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth`, `.pt`, TorchScript archive or `.safetensors` file and recognise its layout.

    Raises CheckpointError where the file cannot be read without running code, or its layout is unknown.
    """
    tensors = read_weights(Path(path))
    record = read_record(Path(path))
    if record is not None:
        return Checkpoint(str(path), OWN_LAYOUT, "", tensors, openai=False, record=record)
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), "")
    if prefix:
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    layout = _recognise(tensors)
    if layout is None:
        shown = ", ".join(sorted(tensors)[:3]) or "none"
        raise CheckpointError(
            f"{path}: unknown layout, its first tensors are {shown}; expected a SigRL, MKT or CLIP ViT checkpoint "
            "(the README lists the layouts)"
        )
    # OpenAI's own archives, and state dicts made from them, carry their input resolution beside the weights.
    openai = "input_resolution" in tensors or not layout.endswith("CLIP")
    return Checkpoint(str(path), layout, prefix, tensors, openai)


def _recognise(tensors: dict[str, Stored]) -> str | None:
    if any(name.startswith(("SemanticDecoupling.", "DecouplingSemantic.", "GATv2_1.")) for name in tensors):
        return "SigRL"
    if "projection_dist" in tensors or "class_embedding" in tensors:
        return "MKT"
    if any(name.startswith("visual.") for name in tensors):
        return "CustomTextCLIP" if any(name.startswith("text.") for name in tensors) else "CLIP"
    return "text tower" if "token_embedding.weight" in tensors or "text_projection" in tensors else None


def model_config(
    checkpoint: Checkpoint, arch: Arch | None = None, topk: int | None = None, clip: ClipConfig | None = None
) -> ModelConfig:
    """The model that a checkpoint holds, its text tower apart. `arch` is read off the layout where it is None.

    Raises CheckpointError where the tensors cannot be that architecture, or do not say enough about it.
    """
    if checkpoint.layout == "text tower":
        raise CheckpointError(
            f"{checkpoint.path}: is a CLIP text tower alone; give it as --text-tower, and a checkpoint with a ViT"
        )
    if checkpoint.record is not None:
        return _recorded_config(checkpoint, checkpoint.record.config, arch, topk)
    arch = arch or {"SigRL": Arch.SIGRL, "MKT": Arch.MKT}.get(checkpoint.layout, Arch.CLIP)
    if arch.has_graph and checkpoint.layout != "SigRL":
        raise CheckpointError(
            f"{checkpoint.path}: a {checkpoint.layout} checkpoint without SigRL's tensors (SemanticDecoupling.fc3.weight …); "
            "give a SigRL checkpoint, or --arch mkt, clip-ft or clip"
        )
    if checkpoint.original("visual.class_embedding") not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {checkpoint.label('visual.class_embedding')} is missing, expected CLIP's ViT "
            "with a class token; a ResNet or another vision tower cannot be used"
        )
    embed_dim = checkpoint.shape("visual.proj", 2)[1]
    vision = clip.vision if clip else _vision_config(checkpoint)
    graph = _graph_configs(checkpoint, embed_dim) if arch.has_graph else ()
    config = ModelConfig(arch, embed_dim, topk or arch.default_topk, vision, None, graph)
    for name, part in (("", config), ("vision.", vision), *(("graph.", layer) for layer in graph)):
        _check_sizes(checkpoint, name, part)
    return config


def _check_sizes(checkpoint: Checkpoint, name: str, part: object) -> None:
    try:
        check_sizes(name, part)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: is no model that can be built: {error}") from None


def _recorded_config(checkpoint: Checkpoint, config: ModelConfig, arch: Arch | None, topk: int | None) -> ModelConfig:
    """The trained config; another architecture takes its own top-k, and leaves out the parts that it does not score with."""
    arch = arch or config.arch
    if arch.has_graph and not config.arch.has_graph:
        raise CheckpointError(
            f"{checkpoint.path}: was trained as {config.arch.value} and has no SVFR or GMC; give a SigRL checkpoint, or leave "
            "out --arch"
        )
    topk = topk or (config.topk if arch is config.arch else arch.default_topk)
    return replace(config, arch=arch, topk=topk, text=None, graph=config.graph if arch.has_graph else ())


def _openai_heads(checkpoint: Checkpoint, width: int) -> int:
    """Heads of a tower that follows OpenAI's convention; any other is refused, since its tensors do not show them."""
    if not checkpoint.openai or width % _HEAD_WIDTH or width > _MAX_WIDTH:
        names = " or ".join(fitting_configs(checkpoint_shapes(checkpoint)))
        choice = f"of its sizes are {names}" if names else "none has its sizes: give a .json file"
        raise CheckpointError(
            f"{checkpoint.path}: its tensors (width {width}) do not tell the number of heads or the activation; "
            f"name its open_clip config with --clip-config ({choice})"
        )
    return width // _HEAD_WIDTH


def checkpoint_shapes(checkpoint: Checkpoint) -> Shapes:
    """Sizes that are read off the tensors of whichever towers a checkpoint has."""
    found: Shapes = {}
    if checkpoint.layout != "text tower" and checkpoint.original("visual.class_embedding") in checkpoint.tensors:
        width, _, patch, _ = checkpoint.shape("visual.conv1.weight", 4)
        grid = math.isqrt(checkpoint.shape("visual.positional_embedding", 2)[0] - 1)
        embed_dim = checkpoint.shape("visual.proj", 2)[1]
        found |= {"embed_dim": embed_dim, "vision.patch_size": patch, "vision.width": width, "vision.grid": grid}
        found["vision.layers"] = checkpoint.layers("visual.")
    if checkpoint.has_text:
        vocab_size, width = checkpoint.shape("text.token_embedding.weight", 2)
        context, _ = checkpoint.shape("text.positional_embedding", 2)
        found |= {"text.width": width, "text.layers": checkpoint.layers("text."), "text.context_length": context}
        found["text.vocab_size"] = vocab_size
    return found


def _vision_config(checkpoint: Checkpoint) -> VisionConfig:
    width, _, patch, _ = checkpoint.shape("visual.conv1.weight", 4)
    heads = _openai_heads(checkpoint, width)
    tokens = checkpoint.shape("visual.positional_embedding", 2)[0]
    grid = round((tokens - 1) ** 0.5)
    if grid * grid != tokens - 1 or not grid:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {checkpoint.label('visual.positional_embedding')} has "
            f"{tokens} rows, expected a square number of patches and one class token"
        )
    return VisionConfig(grid * patch, patch, width, checkpoint.layers("visual."), heads)


def _text_config(checkpoint: Checkpoint) -> TextConfig:
    vocab_size, width = checkpoint.shape("text.token_embedding.weight", 2)
    heads = _openai_heads(checkpoint, width)
    context = checkpoint.shape("text.positional_embedding", 2)[0]
    return TextConfig(width, checkpoint.layers("text."), heads, context, vocab_size)


def _graph_configs(checkpoint: Checkpoint, dim: int) -> tuple[GraphConfig, ...]:
    """Two layers, `dim` → hidden → `dim`. Widths that do not meet come out as a misshapen tensor in `_collect`."""
    hidden = checkpoint.shape("gmc.layers.0.linear.weight", 2)[0]
    layers = []
    for i, (width_in, width_out) in enumerate([(dim, hidden), (hidden, dim)]):
        width_head = checkpoint.shape(f"gmc.layers.{i}.attention", 2)[1]
        layers.append(GraphConfig(width_in, max(1, width_out // width_head), width_head))
    return tuple(layers)


def build_model(checkpoint: Checkpoint, config: ModelConfig) -> SigRL:
    """The eager fp32 model in evaluation mode, without a text tower. Raises CheckpointError naming the tensor at fault."""
    import torch

    from sigrl_deploy.model.sigrl import SigRL

    with torch.device("meta"):
        model = SigRL(config)
    model.load_state_dict(_collect(checkpoint, model.state_dict()), assign=True)
    if config.arch.has_graph:
        _check_shared_graph_weights(checkpoint)
    return model.eval().requires_grad_(False)


def add_text_tower(model: SigRL, checkpoint: Checkpoint, clip: ClipConfig | None = None) -> None:
    """Give the model the text tower of a CLIP checkpoint, an MKT second-stage checkpoint or a text tower alone.

    Raises CheckpointError where the file has no text tower, or its embedding width is not the model's.
    """
    import torch

    from sigrl_deploy.model.text import TextTransformer

    if not checkpoint.has_text:
        raise CheckpointError(
            f"{checkpoint.path}: a {checkpoint.layout} checkpoint holds no text tower; expected OpenAI's ViT-B-16.pt, an "
            "open_clip or an MKT second-stage checkpoint"
        )
    projection = checkpoint.shape("text.text_projection", 2)
    if projection[1] != model.config.embed_dim:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {checkpoint.label('text.text_projection')} projects to {projection[1]}, the "
            f"checkpoint's patches to {model.config.embed_dim}; give the text tower of the same CLIP model"
        )
    recorded = checkpoint.record and checkpoint.record.config.text
    config = recorded or (clip.text if clip else _text_config(checkpoint))
    _check_sizes(checkpoint, "text.", config)
    with torch.device("meta"):
        tower = TextTransformer(config, model.config.embed_dim)
    expected = {f"text.{name}": tensor for name, tensor in tower.state_dict().items()}
    tensors = _collect(checkpoint, expected)
    tower.load_state_dict({name.removeprefix("text."): tensor for name, tensor in tensors.items()}, assign=True)
    model.text = tower.eval().requires_grad_(False)
    model.config = replace(model.config, text=config)


def _check_shared_graph_weights(checkpoint: Checkpoint) -> None:
    """GATv2 is trained with one matrix for both ends of an edge, saved twice; another checkpoint would be computed wrongly."""
    for layer in ("layer1", "output"):
        left, right = (checkpoint.tensors.get(f"GATv2_1.{layer}.linear_{side}.weight") for side in "lr")
        if left is not None and right is not None and not left.read().float().equal(right.read().float()):
            raise CheckpointError(
                f"{checkpoint.path}: tensors {checkpoint.prefix}GATv2_1.{layer}.linear_l.weight and linear_r.weight differ, "
                "expected one shared matrix"
            )


def _collect(checkpoint: Checkpoint, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors in fp32, each there, of the right shape and finite; none of a tower's left over. Shapes are compared before
    anything is read.
    """
    stored = {name: _matching(checkpoint, name, tuple(like.shape)) for name, like in expected.items()}
    _refuse_leftovers(checkpoint, expected)
    found = {}
    for name, like in expected.items():
        tensor = stored[name].read().float()
        if not all(math.isfinite(extreme) for extreme in tensor.aminmax()):  # a NaN is both
            label = checkpoint.label(name)
            raise CheckpointError(f"{checkpoint.path}: tensor {label} holds NaN or infinite values; the training run diverged")
        found[name] = tensor.reshape(like.shape).contiguous()
    return found


def _matching(checkpoint: Checkpoint, name: str, expected: tuple[int, ...]) -> Stored:
    """The file's tensor for one of ours, which has the expected shape."""
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
    """A tensor inside a transformer that nothing uses (more layers than configured, layer scale) means a wrong forward pass."""
    used = {checkpoint.original(name) for name in expected}
    for tower in ("visual.", "text."):
        if any(name.startswith(tower) for name in expected):
            blocks = checkpoint.original(tower + "transformer.")
            left = sorted(name for name in checkpoint.tensors if name.startswith(blocks) and name not in used)
            if left:
                raise CheckpointError(
                    f"{checkpoint.path}: tensor {checkpoint.prefix}{left[0]} has no place in the model; name the checkpoint's "
                    "open_clip config with --clip-config"
                )
