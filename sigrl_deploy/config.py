"""What a model is, and what runs it: architectures, precisions, backends, dimensions. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from msgspec import Meta

from sigrl_deploy.architectures import RULES, Contract, TextSide
from sigrl_deploy.image_towers import (
    Layers,
    MlpRatio,
    Size,
    TowerConfig,
    VisionConfig,
    Width,
    as_vit,
    check_heads,
    kind_of_tower,
)
from sigrl_deploy.structs import Checked

FUSED = ("tower", "svfr", "match", "gmc")  # ops that run as kernels on a GPU


class Arch(str, Enum):
    """How a picture is scored against a label; g is the global feature, T a label embedding, norms are over the labels.

    `sigrl` scores (local/|local| + global/|global|) / 2 with SVFR's reconstructed patches, `mkt` the same with CLIP's own
    patches, `clip-ft` global/|global| (CLIP fine-tuned by the MKT recipe), `clip` the cosine of g and T (zero-shot CLIP).
    `scpnet` scores sigmoid(g/‖g‖ · T), T the rows of SCPNet's text side times its scale, `linear` sigmoid(g · T), a linear
    classifier whose T are its weights with the bias behind them, `biam` and `ml2p` local, with BiAM's regions
    and the groups of the (ML)²P-Encoder as patches.
    """

    SIGRL = "sigrl"
    MKT = "mkt"
    CLIP_FT = "clip-ft"
    CLIP = "clip"
    SCPNET = "scpnet"
    LINEAR = "linear"
    BIAM = "biam"
    ML2P = "ml2p"

    @property
    def towers(self) -> tuple[str, ...]:
        """The kinds of image towers that give the features which it matches."""
        return RULES[self.value].towers

    @property
    def text_side(self) -> TextSide:
        return RULES[self.value].text_side

    @property
    def has_graph(self) -> bool:
        """Whether GMC and SVFR take part, so that a label's row depends on the whole vocabulary."""
        return RULES[self.value].has_graph

    @property
    def has_local(self) -> bool:
        """Whether patches are matched, so that there is a top-k."""
        return RULES[self.value].has_local

    @property
    def has_places(self) -> bool:
        """Whether what is matched lies somewhere in the picture, so that there is evidence by patch."""
        return self.has_local and RULES[self.value].has_places

    @property
    def has_global(self) -> bool:
        """Whether a feature of the whole picture is matched."""
        return RULES[self.value].has_global

    @property
    def has_match_kernel(self) -> bool:
        """Whether `kernels/match.py` computes its rule."""
        return self.has_local and self.has_global and self.compares_labels

    @property
    def unit_global(self) -> bool:
        """Whether the global feature is scaled to unit length before it is matched."""
        return RULES[self.value].unit_global

    @property
    def unit_labels(self) -> bool:
        """Whether label embeddings are scaled to unit length before the global feature is matched with them."""
        return RULES[self.value].unit_labels

    @property
    def compares_labels(self) -> bool:
        """Whether each match is divided by its norm over the labels, so that a score depends on all of them."""
        return RULES[self.value].compares_labels

    @property
    def gives_probabilities(self) -> bool:
        """Whether the score is a sigmoid, trained to be the label's probability."""
        return RULES[self.value].gives_probabilities

    @property
    def default_topk(self) -> int:
        return RULES[self.value].topk

    @property
    def default_template(self) -> str:
        return RULES[self.value].template

    @property
    def default_contract(self) -> Contract:
        """How pictures were prepared in training, where a checkpoint does not say."""
        return RULES[self.value].contract


class Precision(str, Enum):
    """The dtype that an exported file's weights and matrix products have. Inputs and outputs are fp32 in every file.

    The last three are for ONNX Runtime on CPUs. The products of SVFR are in 8 bits, those of the tower in fp32 (int8), each as
    three products in 8 bits, which together keep 14 (int8x3), or in 8 bits too (int8-all); everything else is in fp32.

    >>> Precision("fp16").tolerance  # the largest score error that export allows by default
    0.005
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8X3 = "int8x3"
    INT8_ALL = "int8-all"

    @property
    def tolerance(self) -> float:
        """Largest score error against the PyTorch model in fp32 that an export may have by default."""
        return {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "int8": 1e-2, "int8x3": 1e-2, "int8-all": 5e-2}[self.value]

    @property
    def is_int8(self) -> bool:
        return self in (Precision.INT8, Precision.INT8X3, Precision.INT8_ALL)

    @property
    def takes_one_picture(self) -> bool:
        """Whether a graph takes one picture at a time, since its scales are found over all that it gets."""
        return self in (Precision.INT8X3, Precision.INT8_ALL)

    @property
    def torch_name(self) -> str:
        """The torch dtype of what is not a product in 8 bits."""
        return {Precision.FP16: "float16", Precision.BF16: "bfloat16"}.get(self, "float32")


class Device(str, Enum):
    """Where a model runs. `auto` is a GPU where the backend has one that it can use, else the CPU.

    >>> Recognizer("bundle", device=Device.CPU).engine.device
    'cpu'
    """

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"

    @property
    def candidates(self) -> tuple[Device, ...]:
        """The devices that may be taken for this one, the preferred first."""
        return (Device.CUDA, Device.CPU) if self is Device.AUTO else (self,)


class Backend(str, Enum):
    """What runs a bundle: ONNX Runtime, its TensorRT provider, PyTorch, this project's TensorRT engines, or OpenVINO.

    `auto` is PyTorch where it has a GPU and the bundle holds weights for it, else ONNX Runtime.

    >>> print(Recognizer("bundle", backend=Backend.ONNXRUNTIME).engine.description)
    ONNX Runtime ...
    """

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_TENSORRT = "onnxruntime-tensorrt"
    TORCH = "torch"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"

    @classmethod
    def named(cls) -> tuple[Backend, ...]:
        """All but `auto`."""
        return tuple(backend for backend in cls if backend is not cls.AUTO)

    @property
    def candidates(self) -> tuple[Backend, ...]:
        """The backends that may be taken for this one, the preferred first."""
        return (Backend.TORCH, Backend.ONNXRUNTIME) if self is Backend.AUTO else (self,)

    @property
    def full_name(self) -> str:
        """Its name in a sentence."""
        return _FACTS[self].full_name if self in _FACTS else self.value

    @property
    def packages(self) -> tuple[str, ...]:
        """The optional packages that it imports; of `tensorrt`, those beside TensorRT itself, of which there are two."""
        return _FACTS[self].packages if self in _FACTS else ()

    @property
    def extra(self) -> str:
        """The extra of this package that brings `packages`."""
        return _FACTS[self].extra if self in _FACTS else ""

    @property
    def kernels(self) -> frozenset[str]:
        """The ops of FUSED that can run as kernels on a GPU."""
        return frozenset(op for backend in self.candidates for op in _FACTS[backend].kernels)


_FLOATS = frozenset({Precision.FP32, Precision.FP16, Precision.BF16})
_INT8 = frozenset(precision for precision in Precision if precision.is_int8)


@dataclass(frozen=True)
class _Facts:
    """What there is to know of a backend; see the properties of `Backend`, and `runs`."""

    full_name: str
    runs: dict[Device, frozenset[Precision]]
    kernels: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    extra: str = ""


_FACTS = {
    Backend.ONNXRUNTIME: _Facts(
        "ONNX Runtime",
        # Its CPU provider has no bf16 products, and the 8-bit files hold ops that no other has.
        {Device.CPU: _FLOATS - {Precision.BF16} | _INT8, Device.CUDA: _FLOATS},
        kernels=("svfr", "match"),
    ),
    Backend.ONNXRUNTIME_TENSORRT: _Facts("ONNX Runtime's TensorRT provider", {Device.CUDA: _FLOATS}),
    Backend.TORCH: _Facts("PyTorch", {Device.CPU: _FLOATS, Device.CUDA: _FLOATS}, FUSED, ("torch", "triton"), "export"),
    Backend.TENSORRT: _Facts("TensorRT", {Device.CUDA: _FLOATS}, ("svfr", "match"), ("torch", "triton"), "export"),
    Backend.OPENVINO: _Facts("OpenVINO", {Device.CPU: _FLOATS}, packages=("openvino", "onnx"), extra="openvino"),
}


def runs(backend: Backend, precision: Precision | None = None, device: Device = Device.AUTO) -> bool:
    """Whether a backend runs a precision on a device, if it is installed and the device is there.

    None is any precision; `auto` is any backend, or any device, that it may become.
    """
    found = [_FACTS[b].runs.get(d, frozenset()) for b in backend.candidates for d in device.candidates]
    return any(held if precision is None else precision in held for held in found)


class Crop(str, Enum):
    """How much a model is shown of a picture that is far from square.

    `centre` is what the bundle's preprocessing contract does, mostly a square from the middle; `pad` the whole picture, scaled
    to fit into the square, with the mean colour around it; `tiles` squares that cover the picture along its long side.
    """

    CENTRE = "centre"
    PAD = "pad"
    TILES = "tiles"


class TextConfig(Checked, frozen=True):
    """A CLIP text transformer, read at the end-of-text token."""

    width: Width
    layers: Layers
    heads: Size
    context_length: Annotated[int, Meta(ge=1, le=1 << 10)] = 77
    vocab_size: Annotated[int, Meta(ge=1, le=1 << 20)] = 49408
    mlp_ratio: MlpRatio = 4.0
    quick_gelu: bool = True

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)


class GraphConfig(Checked, frozen=True):
    """One GATv2 layer: `width_in` → `heads` × `width_head`."""

    width_in: Size
    heads: Size
    width_head: Size


class ModelConfig(Checked, frozen=True):
    """Everything needed to build the PyTorch model; `embed_dim` is D, the joint embedding width.

    Raises ValueError where the parts do not fit each other.
    """

    arch: Arch
    embed_dim: Width
    topk: Size
    vision: TowerConfig
    text: TextConfig | None = None
    graph: tuple[GraphConfig, ...] = ()

    @property
    def vit(self) -> VisionConfig:
        """`vision`, where it is a ViT. Raises ValueError for another tower."""
        return as_vit(self.vision)

    def __post_init__(self) -> None:
        if self.arch.has_graph != bool(self.graph):
            expected = "at least one" if self.arch.has_graph else "none"
            raise ValueError(f"graph has {len(self.graph)} layers, expected {expected} for arch {self.arch.value}")
        if kind_of_tower(self.vision) not in self.arch.towers:
            kinds = " or ".join(self.arch.towers)
            raise ValueError(f"vision is of the kind {kind_of_tower(self.vision)}, expected {kinds} for arch {self.arch.value}")
        # Each layer takes what the one before gives, and the first and the last have the width of the embeddings.
        given = [self.embed_dim, *(layer.heads * layer.width_head for layer in self.graph)]
        taken = [*(layer.width_in for layer in self.graph), self.embed_dim]
        if self.graph and given != taken:
            raise ValueError(
                f"the label graph's layers give widths {given[1:]} and take {taken[:-1]}, with embed_dim {given[0]}"
            )
