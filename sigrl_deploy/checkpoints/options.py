"""Which checkpoint to load, and what to take in place of what it says of itself. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path

from sigrl_deploy.architectures import Contract
from sigrl_deploy.config import Arch


@dataclass(frozen=True)
class CheckpointOptions:
    """A checkpoint with its text tower. None means: what the checkpoint says, or else its architecture's default.

    checkpoint: a file, or `NAME:PRETRAINED` for weights that open_clip knows, such as `ViT-B-16:openai`.
    text_tower: where the CLIP text tower comes from, a file or `NAME:PRETRAINED`; None takes the checkpoint's own, or OpenAI's
        of the same size.
    arch: how pictures are scored against labels.
    topk: patches that the local match averages.
    clip_config: an open_clip config (a name, `NAME:PRETRAINED`, or a `.json` file), which says the number of heads and the
        activation, and for `NAME:PRETRAINED` how pictures are prepared; None takes what the checkpoint records, the config of a
        checkpoint that is `NAME:PRETRAINED`, or OpenAI's convention.
    preprocess: how pictures were prepared in training.
    template: the prompt, with `{label}` in it.
    backbone: torchvision's weights of VGG19, which checkpoints of BiAM and of a linear classifier go without.
    heads: of BiAM's attention, which its tensors do not show.
    """

    checkpoint: str | Path
    _: KW_ONLY
    text_tower: str | None = None
    arch: Arch | None = None
    topk: int | None = None
    clip_config: str | None = None
    preprocess: Contract | None = None
    template: str | None = None
    backbone: Path | None = None
    heads: int | None = None


@dataclass(frozen=True)
class SCPNetOptions:
    """What decides the rows of an SCPNet checkpoint's labels and is not in it.

    relation: a `.npy` file [C, C] of how related the labels are, which training used.
    preset: the published data set whose settings are taken for those that are None.
    sparse_topk: related labels that each label keeps, itself among them.
    reweight: the share of a label's row that comes from the others, `reweight_p` in the published configurations.
    scale: the factor of the cosine, or "clip" for the checkpoint's own.
    """

    relation: Path | None = None
    preset: str | None = None
    sparse_topk: int | None = None
    reweight: float | None = None
    scale: float | str | None = None

    @property
    def given(self) -> dict[str, object]:
        """The options that were given, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
