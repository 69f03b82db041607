"""A new CLIP from captioned scenes: SigLIP's sigmoid loss (arXiv 2303.15343) over pictures and over places.

Each object of a picture has a caption that names some of its attributes ("a striped red circle", "a small shape"). The caption
is contrasted with every picture of the batch, and with the patch at the centre of every object, so that patch tokens also learn
to match the words for what they show. Captions are contrasted within the part of a batch that is computed at once, which
`accumulate` and `devices` make smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sigrl_deploy.checkpoints.eager import cut_padding
from sigrl_deploy.datasets.drawing import SHAPES, SIZE, TEXTURES, Thing
from sigrl_deploy.datasets.scenes import COLOURS, SIZES, Scenes
from sigrl_deploy.model.sigrl import SigRL, encode_image, encode_text, unit_rows
from sigrl_deploy.training.data import Purpose
from sigrl_deploy.training.losses import caption_loss
from sigrl_deploy.training.tasks import Scale, Task

PROMPTS = ("There is a {} in the scene", "a picture of a {}", "a {}")
_ATTRIBUTES = (SIZES, TEXTURES, COLOURS, SHAPES)  # in the order of English adjectives
_ANY = -1


@dataclass(frozen=True)
class CaptionedScene:
    """The objects of a picture as codes, their places, a caption for each, and the attributes that each caption names."""

    captions: tuple[str, ...]
    wanted: NDArray[np.int64]  # [things, 4], `_codes` of an attribute or _ANY
    things: NDArray[np.int64]  # [things, 4]
    places: NDArray[np.float64]  # [things, 2], x and y from 0 to 1


def draw_captions(scenes: Scenes, seed: int, epoch: int, index: int) -> CaptionedScene:
    """Caption each object of a picture by a random half of its attributes, drawn anew in every epoch."""
    rng = np.random.default_rng([Purpose.CAPTION, seed, epoch, index])
    things = scenes.things(index)
    codes = np.array([_codes(thing) for thing in things])
    captions, wanted = zip(*(_caption(rng, code) for code in codes), strict=True)
    places = np.array([(thing.x / SIZE, thing.y / SIZE) for thing in things])
    return CaptionedScene(captions, np.stack(wanted), codes, places)


def _caption(rng: np.random.Generator, code: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]]:
    """A caption of an object, and the attributes that it names [4]."""
    named = np.flatnonzero(code != _ANY)
    kept = named[rng.uniform(size=len(named)) < 0.5] if rng.uniform() < 0.9 else named
    kept = kept if len(kept) else rng.choice(named, 1)
    wanted = np.full_like(code, _ANY)
    wanted[kept] = code[kept]
    words = [names[code] for names, code in zip(_ATTRIBUTES, wanted, strict=True) if code != _ANY]
    phrase = " ".join(words if wanted[-1] != _ANY else [*words, "shape"])
    return PROMPTS[rng.integers(len(PROMPTS))].format(phrase), wanted


def _codes(thing: Thing) -> list[int]:
    values = (thing.size, thing.texture, thing.colour, thing.shape)
    return [names.index(value) if value else _ANY for names, value in zip(_ATTRIBUTES, values, strict=True)]


class ContrastiveTask(Task):
    """Both towers, fully trained, with a scale and a bias for pictures and for places."""

    def __init__(self, model: SigRL) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        super().__init__()
        self.model = model.requires_grad_(True)
        self.pictures = Scale(10.0, -4.0)  # the bias fits captions that are true of few pictures
        self.places = Scale(10.0, -4.0)
        self.tokenizer = SimpleTokenizer()

    def targets(self, extras: list[Any]) -> tuple[Tensor, ...]:
        """M objects in all → the token ids of their captions [M, L], whether caption n is true of picture b [B, M], each
        object's picture [M] and patch [M], and whether caption n is true of object m [M, M].
        """
        scenes: list[CaptionedScene] = extras
        owner = np.repeat(np.arange(len(scenes)), [len(scene.things) for scene in scenes])
        things = np.concatenate([scene.things for scene in scenes])
        wanted = np.concatenate([scene.wanted for scene in scenes])
        holds = ((wanted[None] == _ANY) | (wanted[None] == things[:, None])).all(-1)
        shown = np.zeros((len(scenes), len(wanted)), bool)
        np.logical_or.at(shown, owner, holds)
        grid = self.model.config.vision.grid
        column, row = (np.concatenate([scene.places for scene in scenes]) * grid).astype(np.int64).T
        token_ids = cut_padding(self.tokenizer([caption for scene in scenes for caption in scene.captions]))
        return token_ids, *map(torch.from_numpy, (shown, owner, row * grid + column, holds))

    def forward(self, pixels: Tensor, *targets: Tensor) -> dict[str, Tensor]:
        token_ids, shown, owner, patch, holds = targets
        assert self.model.text is not None
        patches, global_feature = encode_image(self.model.visual, pixels)
        captions = encode_text(self.model.text, token_ids)
        with torch.autocast(pixels.device.type, enabled=False):  # norms stay in fp32
            captions = unit_rows(captions.float())
            picture = unit_rows(global_feature.float()) @ captions.T
            place = unit_rows(patches.float()[owner, patch]) @ captions.T
            losses = {
                "pictures": caption_loss(self.pictures(picture), shown),
                "places": caption_loss(self.places(place), holds),
            }
        return {"loss": losses["pictures"] + losses["places"]} | losses
