"""From an upright RGB picture to the input of a visual encoder, prepared as in training.

A checkpoint does not say how its pictures were prepared, so the choice is made at export and written into the bundle's
manifest. The fields of `Preprocess` there are all that another runtime needs to do the same.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.architectures import Contract
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.errors import ImageError, UsageError, member_of
from sigrl_deploy.structs import Checked

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)

MAX_IMAGE_SIZE = 4096

# A picture of 1 x 60000 pixels whose short side is resized to 256 has 3.9 billion pixels, of which the crop keeps 65536.
# Resizing only what the crop needs would not be exact: Pillow rounds the corners of `box=` to single precision, and moving
# the origin alters how its filter weights round. So pictures are resized whole, as in training, up to this bound
# (256 MiB in Pillow; with a short side of 256, an aspect ratio of 1024), and refused beyond it.
MAX_RESIZED_PIXELS = 2**26

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_FINISH_OF_MODE = {"short-side": "center-crop", "squash": "tensor-bilinear"}

_Mean = Annotated[float, Meta(ge=0, le=1)]
_Deviation = Annotated[float, Meta(ge=1e-3, le=1)]


class Preprocess(Checked, frozen=True):
    """What a preprocessing contract means, in data. Calling it turns a picture into pixels.

    contract: the recipe's name, for people; only the other fields decide what is computed.
    image_size: S, the side of the output in pixels.
    resize_size: the side in pixels that the uint8 picture is resized to.
    resize_mode: "short-side" keeps the aspect ratio, "squash" does not.
    interpolation: Pillow's antialiased "bicubic" or "bilinear".
    finish: "center-crop" of the uint8 picture (with "short-side"), or "tensor-bilinear", a resize of the normalised floats
        without antialiasing and with half-pixel centres (with "squash").
    mean, std: per channel, of values scaled to [0, 1].

    Raises ValueError where the fields contradict each other.
    """

    contract: Contract
    image_size: Annotated[int, Meta(ge=1, le=MAX_IMAGE_SIZE)]
    resize_size: Annotated[int, Meta(ge=1, le=2 * MAX_IMAGE_SIZE)]
    resize_mode: Literal["short-side", "squash"]
    interpolation: Literal["bicubic", "bilinear"]
    finish: Literal["center-crop", "tensor-bilinear"]
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Deviation, _Deviation, _Deviation]

    def __post_init__(self) -> None:
        if self.finish != _FINISH_OF_MODE[self.resize_mode]:
            raise ValueError(f"finish is {self.finish}, expected {_FINISH_OF_MODE[self.resize_mode]} with {self.resize_mode}")
        if self.finish == "center-crop" and self.resize_size < self.image_size:
            raise ValueError(f"resize_size {self.resize_size} is less than image_size {self.image_size}, its crop")

    @classmethod
    def for_contract(cls, contract: Contract | str, image_size: int) -> Preprocess:
        """The named recipe, for an encoder that takes image_size x image_size pixels.

        Raises UsageError for an unknown name, or an image size outside 1 to MAX_IMAGE_SIZE.
        """
        chosen = member_of(Contract, contract, "contract")
        if type(image_size) is not int or not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise UsageError(
                f"expected a whole number of pixels, 1 to {MAX_IMAGE_SIZE}", argument="image_size", value=image_size
            )
        if chosen is Contract.ZERO_SHOT:
            resize_size = math.floor(image_size / 0.875)
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        elif chosen in (Contract.CLIP, Contract.CLIP_BILINEAR):
            resize_size, mean, std = image_size, CLIP_MEAN, CLIP_STD
        else:
            of_cifar = chosen is Contract.SQUASH_CIFAR
            mean, std = (CIFAR_MEAN, CIFAR_STD) if of_cifar else (IMAGENET_MEAN, IMAGENET_STD)
            side = 448 if chosen is Contract.SINGLE_POSITIVE else image_size
            return cls(chosen, image_size, side, "squash", "bilinear", "tensor-bilinear", mean, std)
        interpolation: Literal["bicubic", "bilinear"] = "bilinear" if chosen is Contract.CLIP_BILINEAR else "bicubic"
        return cls(chosen, image_size, resize_size, "short-side", interpolation, "center-crop", mean, std)

    def __call__(self, image: Image.Image) -> FloatArray:
        """An RGB picture of any size → normalised pixels [3, S, S] float32, channels in RGB order.

        Raises ImageError for a picture of another mode, of size 0, or too elongated to resize.
        """
        if self.ends_in_uint8:
            return self.normalise(self._crop(image))
        return _resize_bilinear(self.normalise(self._resize(image)), self.image_size)

    @property
    def description(self) -> str:
        """The contract's name, and what differs from it."""
        usual = type(self).for_contract(self.contract, self.image_size)
        fields = ((name, getattr(self, name)) for name in self.__struct_fields__)
        other = [f"{name} {value}" for name, value in fields if value != getattr(usual, name)]
        return f"{self.contract.value} with {', '.join(other)}" if other else self.contract.value

    @property
    def ends_in_uint8(self) -> bool:
        """Whether normalisation is the last step, so that uint8, a quarter of the bytes, can be normalised elsewhere."""
        return self.finish == "center-crop"

    def uint8(self, image: Image.Image) -> NDArray[np.uint8]:
        """As `__call__`, without the normalisation: pixels [3, S, S] uint8. Only where `ends_in_uint8`."""
        return channels_first(self._crop(image))

    def _crop(self, image: Image.Image) -> Image.Image:
        resized = self._resize(image)
        left, top = crop_corner(resized.size, self.image_size)
        return resized.crop((left, top, left + self.image_size, top + self.image_size))

    def _resize(self, image: Image.Image) -> Image.Image:
        require_rgb(image)
        return self.scaled(image, self.resized_size(*image.size))

    def scaled(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The picture at another width and height, by the contract's interpolation."""
        return image.resize(size, _RESAMPLING[self.interpolation])

    def source_box(self, width: int, height: int, extent: int) -> tuple[float, float, float, float]:
        """The part of a picture of width x height pixels that the upper left extent x extent of the S x S pixels come from.

        Left, top, right and bottom edge in pixels of that picture, whose pixel i covers [i, i + 1). Raises ImageError where the
        picture is too elongated to resize.
        """
        resized = self.resized_size(width, height)
        cropped = self.finish == "center-crop"
        left, top = crop_corner(resized, self.image_size) if cropped else (0, 0)
        side = extent if cropped else extent * self.resize_size / self.image_size
        x, y = width / resized[0], height / resized[1]
        return left * x, top * y, (left + side) * x, (top + side) * y

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that a picture is resized to. Raises ImageError where it is too elongated."""
        if self.resize_mode == "squash":
            return self.resize_size, self.resize_size
        short, long = sorted((width, height))
        resized_long = int(self.resize_size * long / short)
        if self.resize_size * resized_long > MAX_RESIZED_PIXELS:
            ratio = MAX_RESIZED_PIXELS // self.resize_size**2
            raise ImageError(f"picture of {width} x {height} pixels: expected an aspect ratio of {ratio} at most; crop it")
        return (self.resize_size, resized_long) if width <= height else (resized_long, self.resize_size)

    def normalise(self, image: Image.Image) -> FloatArray:
        """An RGB picture → normalised pixels [3, H, W] float32 of the same size."""
        # Single precision and true divisions, in this order: anything else differs from training in the last bit.
        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
        pixels /= np.float32(255)
        pixels -= np.array(self.mean, np.float32)[:, None, None]
        pixels /= np.array(self.std, np.float32)[:, None, None]
        return pixels


def require_rgb(image: Image.Image) -> None:
    """Raise ImageError for a picture of another mode, or of size 0."""
    if image.mode != "RGB" or 0 in image.size:
        raise ImageError(f"picture of mode {image.mode} and size {image.size}: expected RGB pixels; use read_image")


def channels_first(image: Image.Image) -> NDArray[np.uint8]:
    """An RGB picture → [3, H, W] uint8, a copy."""
    return np.asarray(image).transpose(2, 0, 1).copy()


def crop_corner(resized: tuple[int, int], size: int) -> tuple[int, int]:
    """Left and top edge of the centre crop of size x size pixels, rounded as torchvision rounds."""
    return round((resized[0] - size) / 2), round((resized[1] - size) / 2)


def _resize_bilinear(pixels: FloatArray, size: int) -> FloatArray:
    below, above, weight = bilinear_taps(pixels.shape[-1], size)
    top, bottom = pixels.take(below, axis=1), pixels.take(above, axis=1)
    rows = top + (bottom - top) * weight[:, None]
    left, right = rows.take(below, axis=2), rows.take(above, axis=2)
    return left + (right - left) * weight


def bilinear_taps(source: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray]:
    """For each of `size` outputs, without antialiasing: the pixels below and above it, and the weight of the one above."""
    # PyTorch computes these coordinates in single precision; in double they would differ by 3e-5 of a pixel.
    scale = np.float32(source) / np.float32(size)
    position = np.maximum(scale * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    below = np.minimum(position.astype(np.intp), source - 1)
    above = np.minimum(below + 1, source - 1)
    return below, above, np.clip(position - below.astype(np.float32), 0, 1).astype(np.float32)
