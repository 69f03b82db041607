"""The layouts that checkpoints come in, recognised by the names of their tensors. No code from a file is ever run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sigrl_deploy.checkpoints.batch_norms import folded, scales
from sigrl_deploy.checkpoints.native import TrainedRecord, read_record
from sigrl_deploy.checkpoints.weights import Stored, read_weights
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.image_towers import MOST_LAYERS

# For each layout, pairs of a prefix of our tensor names and the file's prefix; the first that fits applies.
_REFERENCE_VISION = [("visual.proj", "projection_dist"), ("visual.", "")]
OWN_LAYOUT = "sigrl-deploy"
SCPNET = "SCPNet"
BIAM = "BiAM"
ML2P = "(ML)²P-Encoder"
LINEAR = "linear classifier"
VGG19 = "VGG19"
OTHER_SYSTEMS = (SCPNET, BIAM, ML2P, LINEAR, VGG19)
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
    SCPNET: [
        ("visual.", "image_encoder."),
        ("labels.ctx", "prompt_learner.ctx"),
        ("labels.token_", "prompt_learner.token_"),
        ("labels.gc", "gc"),
        ("labels.", "text_encoder."),
    ],
    BIAM: [("labels.", "W."), ("visual.", "")],
    ML2P: [("visual.", "")],
    LINEAR: [("labels.", "fc1.")],
    VGG19: [("visual.vgg.", "")],
}
_BIAM_EPSILON = 1e-3  # of its batch norms, which stand behind ReLUs
_BIAM_NORMS = {"conv_3X3.bn": "conv_3X3.body", "scene_context_block.gcff.bn": "scene_context_block.gcff.body"}
# Convolutions that a batch norm follows, by the file's names. Those with a bias of their own would go without.
_NORMED = {SCPNET: re.compile(r"image_encoder\..*"), ML2P: re.compile(r"vgg\.features\.\d+|ft_module\.\d+\.conv")}
# By layout, parts of our names of which every tensor has to be used. In others they are the blocks of towers.
_WHOLE = {SCPNET: ("visual.", "labels."), BIAM: ("visual.", "labels."), ML2P: ("visual.",), VGG19: ("visual.vgg.",)}
_BLOCKS = ("visual.transformer.", "visual.layer", "text.transformer.")
# Of those parts, what was saved and is not needed.
_UNUSED = re.compile(
    r".*\.num_batches_tracked|prompt_learner\.token_middle|Channel_MLP\.channel_attn\.project_out\..*|classifier\.6\..*"
)
# What tells checkpoints that hold no tagger, and what to do instead.
_NO_TAGGERS = {
    "self_attn1.query_conv.weight": "is BiAM's network for Open Images, whose forward pass is published nowhere; use its "
    "checkpoint for NUS-WIDE",
    "early_fusion.fc1.weight": "is Gen-MLZSL's generator, which makes training features and tags nothing; give the classifier "
    "that was trained on them (fc1.weight, fc1.bias), and `scaling`",
}
_PREFIXES = ("module.f.feature_extractor.", "f.module.feature_extractor.", "f.feature_extractor.", "module.")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file, by the file's own names without `prefix`, and their layout.

    `record` is what our own training wrote beside them, and None in every other layout.
    """

    path: str
    layout: str
    prefix: str
    tensors: dict[str, Stored]
    openai: bool  # whether heads and activation are known to follow OpenAI's convention
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

    def has_part(self, part: str) -> bool:
        """Whether the layout has tensors whose names of ours begin with `part`."""
        return any(ours.startswith(part) for ours, _ in _LAYOUTS[self.layout])

    def leftovers(self, used: set[str]) -> Iterator[str]:
        """The file's names, without `prefix`, of tensors that belong to the same parts as the `used` ones, and are not used."""
        parts = {part for part in _WHOLE.get(self.layout, _BLOCKS) if any(name.startswith(part) for name in used)}
        for name in self.tensors.keys() - {self.original(name) for name in used}:
            for ours, theirs in _LAYOUTS[self.layout]:
                if name.startswith(theirs):
                    own = ours + name[len(theirs) :]
                    if any(own.startswith(part) for part in parts) and not _UNUSED.fullmatch(name):
                        yield name
                    break

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
                "give the whole file that training saved"
            )
        self.check_float(name, tensor)
        if len(tensor.shape) != ndim or 0 in tensor.shape:
            raise CheckpointError(
                f"{self.path}: tensor {self.label(name)} has shape {list(tensor.shape)}, expected {ndim} dimensions above 0"
            )
        return tensor.shape

    def check_float(self, name: str, tensor: Stored) -> None:
        """Raise CheckpointError unless a tensor holds dense floats: not integers, and neither sparse nor quantised."""
        if not tensor.is_float:
            raise CheckpointError(
                f"{self.path}: tensor {self.label(name)} is {tensor.dtype}, expected dense fp16, bf16, fp32 or fp64"
            )

    def layers(self, tower: str) -> int:
        """The number of transformer blocks in `tower` ("visual." or "text.")."""
        return self.count(tower + "transformer.resblocks.")

    def count(self, start: str) -> int:
        """The number of blocks whose tensors' names begin with `start`, one of our names, and a number."""
        start = self.original(start)
        numbers = {name[len(start) :].split(".")[0] for name in self.tensors if name.startswith(start)}
        if not 0 < len(numbers) <= MOST_LAYERS:
            where = self.prefix + start[:-1]
            raise CheckpointError(f"{self.path}: has {len(numbers)} blocks in {where}, expected 1 to {MOST_LAYERS}")
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
    for name, reason in _NO_TAGGERS.items():
        if name in tensors:
            raise CheckpointError(f"{path}: {reason}")
    layout = _recognise(tensors)
    if layout is None:
        shown = ", ".join(sorted(tensors)[:3]) or "none"
        raise CheckpointError(
            f"{path}: has an unknown layout (its first tensors are {shown}); expected a SigRL, MKT, "
            "CLIP or other checkpoint, in a layout that docs/export.md lists"
        )
    tensors = folded(str(path), tensors, _NORMED.get(layout))
    if layout == BIAM:
        tensors = scales(str(path), tensors, _BIAM_NORMS, _BIAM_EPSILON)
    # OpenAI's own archives, and state dicts made from them, carry their input resolution beside the weights.
    openai = "input_resolution" in tensors or not layout.endswith("CLIP")
    return Checkpoint(str(path), layout, prefix, tensors, openai)


def _recognise(tensors: dict[str, Stored]) -> str | None:
    if any(name.startswith(("SemanticDecoupling.", "DecouplingSemantic.", "GATv2_1.")) for name in tensors):
        return "SigRL"
    if "region_context_block.w_q.weight" in tensors:
        return BIAM
    if "Channel_MLP.channel_attn.temperature" in tensors:
        return ML2P
    if tensors.keys() == {"fc1.weight", "fc1.bias"}:
        return LINEAR
    if "features.0.weight" in tensors and "classifier.0.weight" in tensors:
        return VGG19
    if "prompt_learner.ctx" in tensors or "gc1.weight" in tensors:
        return SCPNET
    if "projection_dist" in tensors or "class_embedding" in tensors:
        return "MKT"
    if any(name.startswith("visual.") for name in tensors):
        return "CustomTextCLIP" if any(name.startswith("text.") for name in tensors) else "CLIP"
    return "text tower" if "token_embedding.weight" in tensors or "text_projection" in tensors else None
