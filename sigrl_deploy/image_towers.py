"""The sizes of image towers, and bounds for the numbers of a model's configuration. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from sigrl_deploy.structs import Checked

VIT, RESNET, VGG, BIAM, ML2P = "vit", "resnet", "vgg", "biam", "ml2p"  # kinds; a record that names none has a ViT
HEAD_WIDTH = 64  # of every attention in the models that OpenAI published
STRIDE = 32  # pixels of a picture to one position of a ResNet's last stage

# Bounds keep a damaged or hostile file from asking for a model that takes very long to build, or very much memory.
MOST_LAYERS = 256
Size = Annotated[int, Meta(ge=1, le=1 << 16)]
Width = Annotated[int, Meta(ge=1, le=1 << 14)]
Layers = Annotated[int, Meta(ge=1, le=MOST_LAYERS)]
MlpRatio = Annotated[float, Meta(gt=0, le=16)]


class VisionConfig(Checked, frozen=True, tag_field="tower", tag=VIT):
    """A CLIP ViT. Pixels are square; P = (image_size // patch_size)²."""

    image_size: Annotated[int, Meta(ge=1, le=1 << 12)]
    patch_size: Size
    width: Width
    layers: Layers
    heads: Size
    mlp_ratio: MlpRatio = 4.0
    quick_gelu: bool = True

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size {self.patch_size} is more than image_size {self.image_size}")

    @property
    def grid(self) -> int:
        """Patches along each side."""
        return self.image_size // self.patch_size


class _Convolutions(Checked, frozen=True):
    """What towers share whose stages halve a picture five times. Pixels are square."""

    image_size: int

    @property
    def patch_size(self) -> int:
        """Pixels along each side that one position of the last stage stands for."""
        return STRIDE

    @property
    def grid(self) -> int:
        """Positions along each side of the last stage."""
        return self.image_size // STRIDE


class ResNetConfig(_Convolutions, frozen=True, tag_field="tower", tag=RESNET):
    """A CLIP ResNet with attention pool: stages of `blocks` bottlenecks, `width` channels in the first. Pixels are square."""

    image_size: Annotated[int, Meta(ge=STRIDE, le=1 << 12)]
    width: Annotated[int, Meta(ge=2, le=1 << 9, multiple_of=2)]
    blocks: tuple[Layers, Layers, Layers, Layers]

    @property
    def channels(self) -> int:
        """Channels of the last stage."""
        return 32 * self.width


class VggConfig(_Convolutions, frozen=True, tag_field="tower", tag=VGG):
    """VGG19 up to fc7, with `width` channels in the first stage and `hidden` numbers in fc6 and fc7. Pixels are square."""

    image_size: Annotated[int, Meta(ge=STRIDE, le=1 << 12, multiple_of=STRIDE)]
    width: Annotated[int, Meta(ge=1, le=1 << 9)] = 64
    hidden: Width = 4096


class BiamConfig(Checked, frozen=True, tag_field="tower", tag=BIAM):
    """BiAM's blocks of `channels`, whose attention has `heads`, behind a VGG19. Regions are what its last pool gets."""

    vgg: VggConfig
    channels: Width
    heads: Size

    def __post_init__(self) -> None:
        check_heads(self.channels, self.heads)

    @property
    def image_size(self) -> int:
        return self.vgg.image_size

    @property
    def patch_size(self) -> int:
        """Pixels along each side of a region."""
        return STRIDE // 2

    @property
    def grid(self) -> int:
        """Regions along each side."""
        return 2 * self.vgg.grid


class Ml2pConfig(_Convolutions, frozen=True, tag_field="tower", tag=ML2P):
    """The (ML)²P-Encoder: VGG19 of `width` channels in its first stage, `taps` of its last three, `groups` of `vector`.

    `token_hidden` and `channel_hidden` are the hidden widths of its mixer. Pixels are square.
    """

    image_size: Annotated[int, Meta(ge=STRIDE, le=1 << 12, multiple_of=STRIDE)]
    groups: Annotated[int, Meta(ge=1, le=1 << 8)]
    width: Annotated[int, Meta(ge=1, le=1 << 9)]
    taps: tuple[Width, Width, Width]
    vector: Annotated[int, Meta(ge=1, le=1 << 10)]
    token_hidden: Width
    channel_hidden: Width


TowerConfig = VisionConfig | ResNetConfig | VggConfig | BiamConfig | Ml2pConfig


def local_features(vision: TowerConfig) -> int:
    """P, how many local features a tower gives."""
    return vision.groups if isinstance(vision, Ml2pConfig) else vision.grid**2


def kind_of_tower(vision: TowerConfig) -> str:
    """VIT, RESNET …"""
    return str(type(vision).__struct_config__.tag)


def as_vit(vision: TowerConfig) -> VisionConfig:
    """The same sizes, where they are a ViT's. Raises ValueError for those of another tower."""
    if not isinstance(vision, VisionConfig):
        raise ValueError(f"its image tower is of the kind {kind_of_tower(vision)}, expected a ViT")
    return vision


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError unless a width can be split into so many heads."""
    if heads < 1 or width % heads:
        raise ValueError(f"width {width} cannot be split into {heads} heads")
