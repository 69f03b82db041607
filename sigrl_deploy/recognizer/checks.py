"""Checks of what is given to a recognizer, before an engine sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from PIL import Image

from sigrl_deploy.arrays import Pixels
from sigrl_deploy.config import Crop
from sigrl_deploy.errors import UsageError, kind_of
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.pictures.reading import name_of
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

_ADVICE = "make them with recognizer.pixels(image)"
Source = TypeVar("Source")


def several(images: Iterable[Source], argument: str) -> Iterable[Source]:
    """The images; a lone one is refused: a path would be read letter by letter, an array row by row.

    Raises UsageError, which names `argument`, for a folder, for pictures stacked in one array, and for what is no list.
    """
    if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
        problem = f"is a folder; pass its files, e.g. sorted(pathlib.Path({name_of(images)!r}).iterdir())"
    elif isinstance(images, np.ndarray) and images.ndim == 4:
        problem = "is one array, expected a list of pictures; use list(array)"
    elif isinstance(images, (str, bytes, os.PathLike, Image.Image, np.ndarray)):
        problem = "is one picture, expected a list of pictures; put it in brackets"
    elif not isinstance(images, Iterable):
        raise UsageError(f"is {kind_of(images)}, expected a list of pictures", argument=argument)
    else:
        return images
    raise UsageError(problem, argument=argument, value=name_of(images))


def check_batch_size(batch_size: int) -> None:
    """Raise UsageError unless a batch of that size holds a picture."""
    if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise UsageError("expected a whole number above 0", argument="batch_size", value=batch_size)


def check_crop(crop: Crop, preprocess: Preprocess, device_preprocess: bool) -> None:
    """Raise UsageError for `pad` and `tiles` where the contract does not crop, or pictures are prepared on the device."""
    if crop is Crop.CENTRE:
        return
    if preprocess.finish != "center-crop":
        problem = f"the bundle's preprocessing, {preprocess.contract.value}, shows the model the whole picture; leave it out"
        raise UsageError(problem, argument="crop", value=crop.value)
    if device_preprocess:
        raise UsageError("is made in Pillow only; leave out `device_preprocess`, or this", argument="crop", value=crop.value)


def check_pixels(pixels: Pixels, side: int, takes_uint8: bool) -> None:
    """Raise UsageError unless these are pixels [B, 3, side, side] in a dtype that the engine takes."""
    if not isinstance(pixels, np.ndarray):
        raise UsageError(f"is {kind_of(pixels)}, expected an array; {_ADVICE}", argument="pixels")
    if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side) or not len(pixels):
        expected = f"expected [B, 3, {side}, {side}] with at least one picture"
        raise UsageError(expected, argument="pixels", value=list(pixels.shape))
    if pixels.dtype == np.uint8 and not takes_uint8:
        raise UsageError(f"this engine does not take uint8; {_ADVICE}", argument="pixels", value=pixels.dtype)
    if pixels.dtype not in (np.uint8, np.float32):
        raise UsageError(f"expected float32; {_ADVICE}", argument="pixels", value=pixels.dtype)


def check_vocabulary(vocabulary: Vocabulary, origin: str) -> None:
    """Raise UsageError for a vocabulary that another bundle made: `origin` is this one's."""
    if not isinstance(vocabulary, Vocabulary):
        problem = f"is {kind_of(vocabulary)}, expected a Vocabulary; make one with recognizer.vocabulary(labels)"
        raise UsageError(problem, argument="vocabulary")
    if vocabulary.origin not in ("", origin):
        raise UsageError("was made by another bundle; make one with this recognizer", argument="vocabulary")
