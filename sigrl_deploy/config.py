"""What a model is, in plain data: the architecture, its dimensions and its defaults. Imports nothing heavy."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

FUSED = ("tower", "svfr", "match", "gmc")  # ops that run as kernels on a GPU
# Of what would take long to build, or much memory; 65,536 of the other sizes.
_LARGEST = {"layers": 256, "vocab_size": 1 << 20, "context_length": 1 << 10, "image_size": 1 << 12, "width": 1 << 14}
BACKENDS = ("auto", "onnxruntime", "onnxruntime-tensorrt", "torch", "tensorrt", "openvino")


class Arch(str, Enum):
    """How a picture is scored against a label; g is the global feature, T a label embedding, norms are over the labels.

    `sigrl` scores (local/|local| + global/|global|) / 2 with SVFR's reconstructed patches, `mkt` the same with CLIP's own
    patches, `clip-ft` global/|global| (CLIP fine-tuned by the MKT recipe), `clip` the cosine of g and T (zero-shot CLIP).
    """

    SIGRL = "sigrl"
    MKT = "mkt"
    CLIP_FT = "clip-ft"
    CLIP = "clip"

    @property
    def has_graph(self) -> bool:
        """Whether GMC and SVFR take part, so that a label's row depends on the whole vocabulary."""
        return self is Arch.SIGRL

    @property
    def has_local(self) -> bool:
        """Whether patches are matched, so that there is a top-k and per-patch evidence."""
        return self in (Arch.SIGRL, Arch.MKT)

    @property
    def default_topk(self) -> int:
        return 18 if self is Arch.MKT else 16

    @property
    def default_template(self) -> str:
        return "a photo of a {label}." if self is Arch.CLIP else "There is a {label} in the scene"


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
        """Largest score error against the eager fp32 model that an export may have by default."""
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


class Contract(str, Enum):
    """The preprocessing recipes that can be asked for by name."""

    ZERO_SHOT = "zero-shot"
    SINGLE_POSITIVE = "single-positive"
    CLIP = "clip"


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP ViT. Pixels are square; P = (image_size // patch_size)²."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    quick_gelu: bool = True

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text transformer, read at the end-of-text token."""

    width: int
    layers: int
    heads: int
    context_length: int = 77
    vocab_size: int = 49408
    mlp_ratio: float = 4.0
    quick_gelu: bool = True


@dataclass(frozen=True)
class GraphConfig:
    """One GATv2 layer: `width_in` → `heads` × `width_head`."""

    width_in: int
    heads: int
    width_head: int


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the eager model; `embed_dim` is D, the joint embedding width."""

    arch: Arch
    embed_dim: int
    topk: int
    vision: VisionConfig
    text: TextConfig | None = None
    graph: tuple[GraphConfig, ...] = ()

    def check(self) -> None:
        """Raise ValueError for values that no model has, before anything of their size is built."""
        check_sizes("", self)
        vision, text = self.vision, self.text
        for name, part in (("vision.", vision), ("text.", text), *(("graph.", layer) for layer in self.graph)):
            if part is not None:
                check_sizes(name, part)
        if vision.width % vision.heads or vision.patch_size > vision.image_size or (text and text.width % text.heads):
            raise ValueError("its widths, heads and sizes do not fit each other")
        if self.arch.has_graph != bool(self.graph):
            raise ValueError(f"graph has {len(self.graph)} layers, which arch {self.arch.value} does not take")
        widths = [(layer.width_in, layer.heads * layer.width_head) for layer in self.graph]
        if widths and (widths[0][0], widths[-1][1]) != (self.embed_dim,) * 2:
            raise ValueError("the label graph's widths do not meet")
        if any(left[1] != right[0] for left, right in pairwise(widths)):
            raise ValueError("the label graph's widths do not meet")


def check_sizes(name: str, part: object) -> None:
    """Raise ValueError where a number of a config is none, or beyond what models have. `name` goes before it in the message."""
    for key, value in vars(part).items():
        if key in ("arch", "vision", "text", "graph"):
            continue
        if key == "quick_gelu":
            right = type(value) is bool
        elif key == "mlp_ratio":
            right = type(value) in (int, float) and 0 < value <= 16
        else:
            right = type(value) is int and 0 < value <= largest_size(key)
        if not right:
            raise ValueError(f"{name}{key} is {reprlib.repr(value)}, expected a number in its usual range")


def largest_size(key: str) -> int:
    """The largest that a size of a config may be."""
    return _LARGEST.get(key, 1 << 16)
