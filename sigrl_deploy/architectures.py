"""What there is to know of each architecture: image towers, text side, scoring rule, defaults. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sigrl_deploy.image_towers import BIAM, ML2P, RESNET, VGG, VIT


class TextSide(Enum):
    """What makes the rows that labels are matched by."""

    TOWER = "CLIP's text transformer, for any labels"
    CHECKPOINT = "the checkpoint alone, for the labels that it was trained on"
    VECTORS = "word vectors, for labels that have some"


class Contract(str, Enum):
    """The preprocessing recipes that can be asked for by name."""

    ZERO_SHOT = "zero-shot"
    SINGLE_POSITIVE = "single-positive"
    CLIP = "clip"
    CLIP_BILINEAR = "clip-bilinear"
    SQUASH = "squash"
    SQUASH_CIFAR = "squash-cifar"


@dataclass(frozen=True)
class Rule:
    """What there is to know of an architecture; see the properties of `Arch`."""

    topk: int = 16
    template: str = "There is a {label} in the scene"
    contract: Contract = Contract.ZERO_SHOT
    text_side: TextSide = TextSide.TOWER
    towers: tuple[str, ...] = (VIT,)
    has_graph: bool = False
    has_local: bool = False
    has_global: bool = True
    has_places: bool = True  # of local features
    unit_global: bool = False
    unit_labels: bool = False
    compares_labels: bool = False
    gives_probabilities: bool = False


_PHOTO, _LABEL = "a photo of a {label}.", "{label}"
# By the value of `Arch`.
RULES = {
    "sigrl": Rule(has_graph=True, has_local=True, compares_labels=True),
    "mkt": Rule(topk=18, has_local=True, compares_labels=True),
    "clip-ft": Rule(towers=(VIT, RESNET), compares_labels=True),
    "clip": Rule(towers=(VIT, RESNET), template=_PHOTO, contract=Contract.CLIP, unit_global=True, unit_labels=True),
    "scpnet": Rule(
        template=_PHOTO,
        contract=Contract.CLIP_BILINEAR,
        text_side=TextSide.CHECKPOINT,
        towers=(RESNET,),
        unit_global=True,
        gives_probabilities=True,
    ),
    "linear": Rule(
        template=_LABEL,
        contract=Contract.SQUASH,
        text_side=TextSide.CHECKPOINT,
        towers=(VGG,),
        gives_probabilities=True,
    ),
    "biam": Rule(
        topk=6,
        template=_LABEL,
        contract=Contract.SQUASH,
        text_side=TextSide.VECTORS,
        towers=(BIAM,),
        has_local=True,
        has_global=False,
    ),
    "ml2p": Rule(
        topk=1,
        template=_LABEL,
        contract=Contract.SQUASH_CIFAR,
        text_side=TextSide.VECTORS,
        towers=(ML2P,),
        has_local=True,
        has_global=False,
        has_places=False,
    ),
}
