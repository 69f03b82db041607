"""`Preprocess` in PyTorch, on the device that the picture is on. Its pixels equal Pillow's bit for bit wherever tested.

Pillow resizes 8-bit pictures in integer arithmetic: each pass multiplies pixels by weights rounded to 22 bits, adds, and rounds
to uint8. The same integers are computed here, for the rows and columns of the crop only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.pictures.preprocess import Preprocess, bilinear_taps, crop_corner, require_rgb

log = logging.getLogger(__name__)

_BITS = 22  # fractional bits of Pillow's weights, for 8-bit pictures
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}  # radius of the filter in source pixels, when enlarging
_SIZES_KEPT = 64  # resizes whose weights stay on the device: 250 KB each for a photograph of 12 megapixels


class DevicePreprocess:
    """A preprocessing contract on a device. Threads may share it. On a GPU it works in a stream of its own."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._preprocess = preprocess
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, image: Image.Image) -> FloatArray:
        """As `Preprocess.__call__`: an RGB picture → [3, S, S] float32 on the host. Raises ImageError as it does."""
        return self._run(prepare, self._preprocess, image)

    def uint8(self, image: Image.Image) -> NDArray[np.uint8]:
        """As `Preprocess.uint8`, on the host."""
        return self._run(resize, self._preprocess.uint8, image)

    def _run(
        self, step: Callable[[Preprocess, Tensor], Tensor], pillow: Callable[[Image.Image], Any], image: Image.Image
    ) -> Any:
        require_rgb(image)
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                return step(self._preprocess, torch.from_numpy(np.array(image)).to(self._device)).cpu().numpy()
        except torch.OutOfMemoryError:
            log.warning(
                "%s has too little memory to resize a picture of %d x %d pixels; Pillow does it", self._device, *image.size
            )
            return pillow(image)


def prepare(preprocess: Preprocess, picture: Tensor) -> Tensor:
    """RGB picture uint8 [H, W, 3] → normalised pixels [3, S, S] fp32 on the same device.

    Raises ImageError for a picture too elongated to resize.
    """
    pixels = Normalise(preprocess, picture.device)(resize(preprocess, picture))
    return pixels if preprocess.ends_in_uint8 else _resize_bilinear(pixels, preprocess.image_size)


def resize(preprocess: Preprocess, picture: Tensor) -> Tensor:
    """RGB picture uint8 [H, W, 3] → uint8 [3, h, w] before normalisation, cropped to S x S where the contract crops.

    Raises as `prepare`.
    """
    height, width = picture.shape[:2]
    new_width, new_height = preprocess.resized_size(width, height)
    left, top, columns, rows = 0, 0, new_width, new_height
    if preprocess.ends_in_uint8:
        columns = rows = preprocess.image_size
        left, top = crop_corner((new_width, new_height), preprocess.image_size)
    passes = [
        (1, _taps(width, new_width, left, columns, preprocess.interpolation, picture.device)),
        (0, _taps(height, new_height, top, rows, preprocess.interpolation, picture.device)),
    ]
    (axis, taps), (other_axis, other) = passes[::-1] if _vertical_first((width, height), (new_width, new_height)) else passes
    needed = picture.narrow(other_axis, other.first, other.last + 1 - other.first)
    return _resize(_resize(needed, axis, taps), other_axis, other, other.first).permute(2, 0, 1).contiguous()


class Normalise:
    """The last step of a contract that ends in uint8, on a device: pixels uint8 [..., 3, H, W] → fp32, (x / 255 - mean) / std.

    The divisors are tensors, because a GPU divides by a number by multiplying with its rounded inverse.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._levels = torch.tensor(255, dtype=torch.float32, device=device)
        self.statistics = torch.tensor([preprocess.mean, preprocess.std], dtype=torch.float32, device=device)  # [2, 3]

    def __call__(self, pixels: Tensor) -> Tensor:
        mean, std = self.statistics[:, :, None, None]
        return (pixels.float() / self._levels - mean) / std


def _vertical_first(source: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether Pillow's vertical pass comes first, to save work on tall pictures. The order changes how pixels are rounded."""
    (width, height), (new_width, new_height) = source, size
    if int(PIL.__version__.partition(".")[0]) >= 13:
        return height - new_height > max(0, 2 * (width - new_width))
    return height > 100 * width and new_height < height


class _Taps:
    """For each of N outputs along one axis: its K source pixels [K, N] and their weights [K, N] int32, 0 outside the filter."""

    def __init__(self, index: NDArray[np.int64], weight: NDArray[np.int32], device: torch.device) -> None:
        self.first, self.last = int(index.min()), int(index.max())
        self.index = torch.from_numpy(index).to(device)
        self.weight = torch.from_numpy(weight).to(device)


@lru_cache(maxsize=_SIZES_KEPT)
def _taps(source: int, size: int, start: int, count: int, interpolation: str, device: torch.device) -> _Taps:
    """The taps of outputs `start` to `start + count` of a resize from `source` to `size` pixels.

    The same steps in the same order as Pillow's precompute_coeffs, since the weights are rounded at the end.
    """
    scale = source / size
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    center = (np.arange(start, start + count) + 0.5) * scale
    low = np.maximum((center - support + 0.5).astype(np.int64), 0)
    high = np.minimum((center + support + 0.5).astype(np.int64), source)
    index = low + np.arange(int((high - low).max()))[:, None]
    weight = np.where(index < high, _filter(interpolation, (index - center + 0.5) * (1.0 / stretch)), 0.0)
    total = np.zeros(count)
    for row in weight:  # in this order, because another might round differently
        total += row
    weight /= np.where(total != 0, total, 1.0)
    rounded = np.trunc(weight * (1 << _BITS) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)
    return _Taps(np.minimum(index, source - 1), rounded, device)


def _filter(interpolation: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.where(x < 1, 1 - x, 0.0)
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _resize(picture: Tensor, axis: int, taps: _Taps, offset: int = 0) -> Tensor:
    """uint8 [H, W, 3], whose first `offset` rows or columns have been left out → uint8 with N outputs along `axis`."""
    shape = [1, 1, 1]
    shape[axis] = taps.index.shape[1]
    total: Tensor | int = 1 << (_BITS - 1)
    for index, weight in zip(taps.index - offset, taps.weight, strict=True):
        total = picture.index_select(axis, index) * weight.view(shape) + total
    assert isinstance(total, Tensor)
    return (total >> _BITS).clamp(0, 255).to(torch.uint8)


def _resize_bilinear(pixels: Tensor, size: int) -> Tensor:
    below, above, weight = (torch.from_numpy(x).to(pixels.device) for x in bilinear_taps(pixels.shape[-1], size))
    top, bottom = pixels.index_select(1, below), pixels.index_select(1, above)
    rows = top + (bottom - top) * weight[:, None]
    left, right = rows.index_select(2, below), rows.index_select(2, above)
    return left + (right - left) * weight
