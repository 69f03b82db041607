"""Batches for training: in a deterministic order that can be resumed at any step, augmented, without unreadable pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from torchvision.transforms import InterpolationMode, v2

from sigrl_deploy.datasets.dataset import Dataset
from sigrl_deploy.errors import DatasetError, ImageError
from sigrl_deploy.pictures.preprocess import Preprocess

AUGMENTATIONS = ("randaugment", "crop", "flip", "none")
ATTEMPTS = 100  # pictures that are tried instead of an unreadable one
Transform = Callable[[Image.Image], Tensor]


def augmentation(name: str, preprocess: Preprocess) -> Transform:
    """A transform: PIL picture → pixels [3, S, S] fp32.

    `crop` is a random resized crop and a flip, `randaugment` adds RandAugment, `flip` is a flip and the preprocessing of
    inference, and `none` that preprocessing alone.
    """
    size, interpolation = preprocess.image_size, InterpolationMode(preprocess.interpolation)
    as_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocess.mean, preprocess.std)]
    crop = [v2.RandomResizedCrop(size, interpolation=interpolation), v2.RandomHorizontalFlip()]
    plain = _AsInferred(preprocess)
    steps = {
        "randaugment": [*crop, v2.RandAugment(interpolation=interpolation), *as_tensor],
        "crop": [*crop, *as_tensor],
        "flip": [v2.RandomHorizontalFlip(), plain],
        "none": [plain],
    }
    return v2.Compose(steps[name])


class _AsInferred(nn.Module):
    """The preprocessing of inference as a transform."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def forward(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(self.preprocess(image))


class KeptPictures:
    """A data set that keeps every picture it has read or drawn in memory: 3 bytes per pixel."""

    def __init__(self, dataset: Dataset) -> None:
        self.labels, self.label_sets = dataset.labels, dataset.label_sets
        self.name, self.targets = dataset.name, dataset.targets
        self._dataset = dataset
        self._pictures: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def image(self, index: int) -> Image.Image:
        if index not in self._pictures:
            self._pictures[index] = self._dataset.image(index)
        return self._pictures[index]


@dataclass(frozen=True)
class Example:
    """One picture of a batch: pixels [3, S, S], the task's target, and (name, reason) of unreadable pictures it replaces."""

    pixels: Tensor
    extra: Any
    failed: tuple[tuple[str, str], ...]


class Examples(TorchDataset[Example]):
    """Pictures by (epoch, position). Augmentation depends on seed, epoch and picture only, not on workers or restarts.

    An unreadable picture is replaced by another one drawn at random, so that batches keep their size. Its neighbours would not
    do: they are often missing too, such as a whole folder. Raises DatasetError where ATTEMPTS others cannot be read either.
    """

    def __init__(
        self, dataset: Dataset, indices: NDArray[np.intp], transform: Transform, extra: Callable[[int, int], Any], seed: int
    ) -> None:
        self.dataset = dataset
        self.indices = indices
        self.transform = transform
        self.extra = extra  # (epoch, index in the data set) → the task's target
        self.seed = seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, position = key
        failed: list[tuple[str, str]] = []
        others = np.random.default_rng([Purpose.SUBSTITUTE, self.seed, epoch, position]).integers(len(self), size=ATTEMPTS)
        for place in (position, *others):
            index = int(self.indices[place])
            try:
                image = self.dataset.image(index)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed_of(Purpose.AUGMENTATION, self.seed, epoch, index))
                    return Example(self.transform(image), self.extra(epoch, index), tuple(failed))
            except ImageError as error:
                failed.append((self.dataset.name(index), str(error)))
        name, reason = failed[0]
        problem = reason if name in reason else f"{name}: {reason}"
        others_tried = len({other for other, _ in failed}) - 1
        if others_tried:
            problem += f"; {others_tried} other{'' if others_tried == 1 else 's'} drawn at random cannot be read either"
        advice = "check that the pictures are where the annotations say, and continue with `resume`"
        raise DatasetError(f"{problem}; {advice}")


class Purpose(IntEnum):
    """The first number of each seed, so that no two kinds of draws share a stream."""

    ORDER = 101
    AUGMENTATION = 102
    DROPOUT = 103
    CAPTION = 104
    SUBSTITUTE = 105


def seed_of(purpose: Purpose, *parts: int) -> int:
    """One seed from several numbers; a sum of them would collide."""
    return int(np.random.SeedSequence([purpose, *parts]).generate_state(1)[0])


class Order(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position) for a range of updates.

    Each update has `parts` equal parts (devices × accumulation), of which `part` selects this device's.
    An epoch is a permutation that depends on the seed and the epoch only. Its last, smaller batch is left out.
    """

    def __init__(self, count: int, batch_size: int, seed: int, steps: range, part: slice, parts: int) -> None:
        self.count, self.batch_size, self.seed, self.steps = count, batch_size, seed, steps
        self.part, self.parts = part, parts

    def __len__(self) -> int:
        return len(self.steps) * len(range(*self.part.indices(self.parts)))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.count // self.batch_size
        permuted = -1
        for step in self.steps:
            epoch, batch = divmod(step, per_epoch)
            if epoch != permuted:
                order, permuted = np.random.default_rng([Purpose.ORDER, self.seed, epoch]).permutation(self.count), epoch
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            for part in range(*self.part.indices(self.parts)):
                yield [(epoch, int(position)) for position in chosen[part :: self.parts]]


Batch = tuple[Tensor, list[Any], list[tuple[str, str]]]


def collate(examples: list[Example]) -> Batch:
    """Examples → pixels [B, 3, S, S], their targets, and (name, reason) of each unreadable picture."""
    failed = [pair for example in examples for pair in example.failed]
    return torch.stack([example.pixels for example in examples]), [example.extra for example in examples], failed
