"""Preprocessing in PyTorch against Pillow's: every contract, over sizes that shrink, grow, or are one pixel wide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sigrl_deploy.architectures import Contract
from sigrl_deploy.errors import ImageError
from sigrl_deploy.pictures.device_preprocess import DevicePreprocess
from sigrl_deploy.pictures.preprocess import Preprocess
from tests.support.refusals import assert_refused

CPU = torch.device("cpu")
# (width, height): large, tall, odd remainders on both sides of the crop, wide, tiny, one pixel wide, of no change.
SIZES = [(1500, 1001), (375, 500), (301, 777), (900, 7), (7, 5), (1, 1), (1, 40), (500, 1), (224, 224), (256, 256), (448, 448)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def levels(preprocess: Preprocess, image: Image.Image, device: torch.device) -> float:
    """The largest difference in grey levels of 255."""
    got, expected = DevicePreprocess(preprocess, device)(image), preprocess(image)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.shape == expected.shape
    difference = np.abs(got - expected) * np.array(preprocess.std, np.float32)[:, None, None] * 255
    return float(difference.max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("contract", list(Contract))
def test_it_equals_pillow(contract: Contract, size: tuple[int, int]) -> None:
    """To the bit on x86; where a compiler fuses Pillow's products and sums, a weight may round otherwise."""
    assert levels(Preprocess.for_contract(contract, 224), noise(*size), CPU) <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("contract", list(Contract))
def test_it_equals_pillow_on_a_gpu(contract: Contract) -> None:
    for size in SIZES:
        assert levels(Preprocess.for_contract(contract, 224), noise(*size), torch.device("cuda")) <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.sampled_from(list(Contract)))
def test_it_equals_pillow_at_any_size(width: int, height: int, image_size: int, contract: Contract) -> None:
    assert levels(Preprocess.for_contract(contract, image_size), noise(width, height), CPU) <= 1


def test_photographs_come_out_bit_for_bit(photos: list) -> None:
    for contract in Contract:
        preprocess = Preprocess.for_contract(contract, 224)
        for path in photos:
            image = Image.open(path).convert("RGB")
            np.testing.assert_array_equal(DevicePreprocess(preprocess, CPU)(image), preprocess(image))


def test_it_refuses_what_pillow_s_refuses() -> None:
    preprocess = DevicePreprocess(Preprocess.for_contract("zero-shot", 224), CPU)
    assert_refused(lambda: preprocess(Image.new("RGB", (1, 60000))), ImageError, "60000")
    assert_refused(lambda: preprocess(Image.new("L", (4, 4))), ImageError, "mode L")
