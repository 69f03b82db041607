"""Which checkpoint to load, and what to take in place of what it says of itself. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from sigrl_deploy.config import Arch, Contract


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
    """

    checkpoint: str | Path
    _: KW_ONLY
    text_tower: str | None = None
    arch: Arch | None = None
    topk: int | None = None
    clip_config: str | None = None
    preprocess: Contract | None = None
    template: str | None = None
