"""`scenes`: generated pictures of several objects on clutter, with compositional labels. Nothing has to be downloaded.

A label combines two attributes of one object: "red triangle", "striped circle", "large heart". Some of these combinations are
unseen: no training picture or caption contains one, but each of their attributes occurs there in other combinations. Picture i
of a split depends on the seed, the split and i only, and is drawn on demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE
from sigrl_deploy.datasets.drawing import HUES, RADII, SHAPES, SIZE, TEXTURES, Thing, draw_scene
from sigrl_deploy.errors import UsageError

COLOURS = tuple(HUES)
SIZES = ("small", "large")
LENGTHS = {"train": 60_000, "val": 1_000, "test": 4_000}
_ATTRIBUTES = (*COLOURS, *TEXTURES, *SIZES)
LABELS = tuple(f"{attribute} {shape}" for attribute in _ATTRIBUTES for shape in SHAPES)


def _unseen() -> tuple[str, ...]:
    """Of the combinations with a shape, 12 of 64 colours, 6 of 24 textures and 4 of 16 sizes, spread over all of them."""
    pairs = [(colour, SHAPES[(3 * i + 1) % 8]) for i, colour in enumerate(COLOURS)]
    pairs += [(colour, SHAPES[(3 * i + 5) % 8]) for i, colour in enumerate(COLOURS[:4])]
    pairs += [(texture, SHAPES[(3 * i + shift) % 8]) for i, texture in enumerate(TEXTURES) for shift in (0, 4)]
    pairs += [(size, SHAPES[(3 * i + shift) % 8]) for i, size in enumerate(SIZES) for shift in (2, 6)]
    return tuple(label for label in LABELS if tuple(label.split()) in set(pairs))


UNSEEN = _unseen()
SEEN = tuple(label for label in LABELS if label not in UNSEEN)


def labels_of(thing: Thing) -> list[str]:
    """The labels of a picture that has this object."""
    return [f"{attribute} {thing.shape}" for attribute in (thing.colour, thing.texture, thing.size) if attribute]


class Scenes:
    """One split: pictures of 1 to 4 objects. Unseen combinations occur in "val" and "test" only."""

    labels = LABELS
    label_sets: Mapping[str, tuple[str, ...]] = {"unseen": UNSEEN, "seen": SEEN, "all": LABELS}

    def __init__(self, split: str, seed: int = 0) -> None:
        if split not in LENGTHS:
            raise UsageError(f"scenes has no such split; choose one of {', '.join(LENGTHS)}", argument="split", value=split)
        self.split = split
        self.seed = seed

    def __len__(self) -> int:
        return LENGTHS[self.split]

    def name(self, index: int) -> str:
        return f"scenes/{self.split}/{self.seed}/{index}"

    def image(self, index: int) -> Image.Image:
        """RGB, 96 × 96 pixels."""
        return draw_scene(self.things(index), self._rng(index, "picture"))

    def targets(self, index: int) -> NDArray[np.int8]:
        present = {label for thing in self.things(index) for label in labels_of(thing)}
        return np.array([POSITIVE if label in present else NEGATIVE for label in LABELS], np.int8)

    def things(self, index: int) -> list[Thing]:
        """The objects of a picture, back to front."""
        rng = self._rng(index, "things")
        things: list[Thing] = []
        wanted = int(rng.integers(1, 5))
        while len(things) < wanted:
            thing = _draw(rng)
            if self.split == "train" and not self._unseen.isdisjoint(labels_of(thing)):
                continue
            if all(np.hypot(thing.x - other.x, thing.y - other.y) > 0.85 * (thing.radius + other.radius) for other in things):
                things.append(thing)
            else:
                wanted -= rng.uniform() < 0.1  # give up where the picture is full
        return things

    @cached_property
    def _unseen(self) -> frozenset[str]:
        return frozenset(UNSEEN)

    def _rng(self, index: int, purpose: str) -> np.random.Generator:
        if not 0 <= index < len(self):
            raise IndexError(index)
        streams = ("things", "picture")
        return np.random.default_rng([self.seed, list(LENGTHS).index(self.split), index, streams.index(purpose)])


def _draw(rng: np.random.Generator) -> Thing:
    size = ("small", "", "large")[rng.integers(3)]
    radius = rng.uniform(*RADII[size])
    return Thing(
        colour=COLOURS[rng.integers(len(COLOURS))],
        shape=SHAPES[rng.integers(len(SHAPES))],
        texture=("", *TEXTURES)[rng.integers(len(TEXTURES) + 1)],
        size=size,
        x=rng.uniform(radius, SIZE - radius),
        y=rng.uniform(radius, SIZE - radius),
        radius=radius,
    )
