"""The preprocessing contracts against torchvision and PyTorch, which the training pipelines used."""

from __future__ import annotations

import json
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from sigrl_deploy.architectures import Contract
from sigrl_deploy.errors import ImageError, UsageError
from sigrl_deploy.pictures.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused, refused

GOLDEN = ROOT / "tests" / "golden" / "preprocess.npz"
CUBIC = transforms.InterpolationMode.BICUBIC
LINEAR = transforms.InterpolationMode.BILINEAR

# (width, height): landscape, portrait, square, odd remainders on both sides of the crop, one pixel wide, tiny, exact.
SIZES = [
    (500, 375),
    (375, 500),
    (301, 777),
    (224, 224),
    (256, 256),
    (255, 257),
    (1, 1),
    (1, 40),
    (40, 1),
    (2, 3),
    (7, 5),
]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def cropped_by_torchvision(
    image: Image.Image, resize: int, size: int, mean: tuple[float, ...], std: tuple[float, ...], how: object = CUBIC
) -> np.ndarray:
    steps = [transforms.Resize(resize, how), transforms.CenterCrop(size), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(mean, std)])(image).numpy()


def squashed_by_torch(image: Image.Image, size: int) -> np.ndarray:
    steps = [transforms.Resize((448, 448), LINEAR), transforms.ToTensor()]
    pixels = transforms.Compose([*steps, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(image)
    resized = torch.nn.functional.interpolate(
        pixels[None], size=(size, size), mode="bilinear", align_corners=False, antialias=False
    )
    return resized[0].numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("image_size", "resize"), [(224, 256), (336, 384), (225, 257)])
def test_zero_shot_equals_torchvision_bit_for_bit(size: tuple[int, int], image_size: int, resize: int) -> None:
    image = noise(*size)
    expected = cropped_by_torchvision(image, resize, image_size, IMAGENET_MEAN, IMAGENET_STD)
    actual = Preprocess.for_contract("zero-shot", image_size)(image)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [224, 225])
def test_clip_equals_torchvision_bit_for_bit(size: tuple[int, int], image_size: int) -> None:
    image = noise(*size)
    expected = cropped_by_torchvision(image, image_size, image_size, CLIP_MEAN, CLIP_STD)
    np.testing.assert_array_equal(Preprocess.for_contract(Contract.CLIP, image_size)(image), expected)
    expected = cropped_by_torchvision(image, image_size, image_size, CLIP_MEAN, CLIP_STD, LINEAR)
    np.testing.assert_array_equal(Preprocess.for_contract(Contract.CLIP_BILINEAR, image_size)(image), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [224, 225])
def test_squash_equals_torchvision_bit_for_bit(size: tuple[int, int], image_size: int) -> None:
    image = noise(*size)
    steps = [transforms.Resize((image_size, image_size), LINEAR), transforms.ToTensor()]
    expected = transforms.Compose([*steps, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(image).numpy()
    np.testing.assert_array_equal(Preprocess.for_contract(Contract.SQUASH, image_size)(image), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
def test_cropping_contracts_equal_torchvision_at_any_size(width: int, height: int, image_size: int) -> None:
    image = noise(width, height)
    zero_shot = cropped_by_torchvision(image, int(image_size / 0.875), image_size, IMAGENET_MEAN, IMAGENET_STD)
    np.testing.assert_array_equal(Preprocess.for_contract("zero-shot", image_size)(image), zero_shot)
    clip = cropped_by_torchvision(image, image_size, image_size, CLIP_MEAN, CLIP_STD)
    np.testing.assert_array_equal(Preprocess.for_contract("clip", image_size)(image), clip)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [7, 224, 225, 333, 336, 448, 512])
def test_single_positive_equals_torch(size: tuple[int, int], image_size: int) -> None:
    # The two round their sums in a different order: up to 4e-7 on noise, where values reach 2.6. The bound of 1e-5 is a
    # thousandth of a grey level (1 / 255 / 0.229), far below what a shifted or antialiased resize would give.
    image = noise(*size)
    actual = Preprocess.for_contract("single-positive", image_size)(image)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    np.testing.assert_allclose(actual, squashed_by_torch(image, image_size), rtol=0, atol=1e-5)


def test_contracts_differ() -> None:
    image = noise(300, 200)
    made = [Preprocess.for_contract(contract, 224)(image) for contract in Contract]
    assert min(np.abs(a - b).max() for a, b in combinations(made, 2)) > 0.1


def test_channels_come_out_in_rgb_order() -> None:
    pixels = Preprocess.for_contract("clip", 8)(Image.new("RGB", (20, 10), (255, 0, 0)))
    expected = (np.array([1.0, 0.0, 0.0]) - CLIP_MEAN) / CLIP_STD
    # Float64 against float32: half a unit in the last place of values near 2.
    np.testing.assert_allclose(pixels[:, 4, 4], expected, rtol=1e-6)


def test_the_picture_is_left_as_it_was() -> None:
    image = noise(30, 20)
    before = image.tobytes()
    for contract in Contract:
        Preprocess.for_contract(contract, 16)(image)
    assert image.tobytes() == before


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1)])
@pytest.mark.parametrize("contract", ["zero-shot", "clip"])
def test_absurd_aspect_ratio_is_refused(size: tuple[int, int], contract: str) -> None:
    assert_refused(lambda: Preprocess.for_contract(contract, 224)(Image.new("RGB", size)), ImageError, "60000", "aspect ratio")


def test_absurd_aspect_ratio_can_be_squashed() -> None:
    image = noise(1, 60000)
    actual = Preprocess.for_contract("single-positive", 224)(image)
    np.testing.assert_allclose(actual, squashed_by_torch(image, 224), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 500), (500, 1)])
def test_a_very_long_panorama_is_still_exact(size: tuple[int, int]) -> None:
    image = noise(*size)
    expected = cropped_by_torchvision(image, 256, 224, IMAGENET_MEAN, IMAGENET_STD)
    np.testing.assert_array_equal(Preprocess.for_contract("zero-shot", 224)(image), expected)


@pytest.mark.parametrize("image", [Image.new("L", (4, 4)), Image.new("RGBA", (4, 4)), Image.new("RGB", (0, 4))])
def test_pictures_that_are_not_rgb_are_refused(image: Image.Image) -> None:
    assert_refused(lambda: Preprocess.for_contract("clip", 8)(image), ImageError, f"mode {image.mode}", str(image.size))


@pytest.mark.parametrize("contract", list(Contract))
@pytest.mark.parametrize("image_size", [1, 224, 4096])
def test_dict_round_trips_through_json(contract: Contract, image_size: int) -> None:
    preprocess = Preprocess.for_contract(contract, image_size)
    assert Preprocess.from_plain(json.loads(json.dumps(preprocess.to_plain()))) == preprocess


def test_dict_says_what_is_done() -> None:
    assert json.loads(json.dumps(Preprocess.for_contract("zero-shot", 224).to_plain())) == {
        "contract": "zero-shot",
        "image_size": 224,
        "resize_size": 256,
        "resize_mode": "short-side",
        "interpolation": "bicubic",
        "finish": "center-crop",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


NONSENSE = [
    ("contract", "imagenet"),
    ("contract", None),
    ("contract", ["clip"]),
    ("image_size", 0),
    ("image_size", -224),
    ("image_size", 224.0),
    ("image_size", "224"),
    ("image_size", True),
    ("image_size", 300),
    ("image_size", 10**9),
    ("resize_size", 200),
    ("resize_size", None),
    ("resize_size", 10**9),
    ("resize_mode", "long-side"),
    ("resize_mode", "squash"),
    ("resize_mode", []),
    ("interpolation", "lanczos"),
    ("interpolation", {}),
    ("finish", "tensor-bilinear"),
    ("finish", None),
    ("mean", [0.5, 0.5]),
    ("mean", 0.5),
    ("mean", ["0.5", "0.5", "0.5"]),
    ("mean", [0.5, 0.5, float("nan")]),
    ("mean", [123.7, 116.3, 103.5]),
    ("std", [0.0, 0.2, 0.2]),
    ("std", [-0.2, 0.2, 0.2]),
    ("std", [float("inf"), 0.2, 0.2]),
    ("std", None),
]


@pytest.mark.parametrize(("key", "value"), NONSENSE)
def test_nonsense_in_a_manifest_is_refused(key: str, value: object) -> None:
    data = Preprocess.for_contract("zero-shot", 224).to_plain()
    with pytest.raises(ValueError, match=r"expected|invalid enum|less than") as caught:
        Preprocess.from_plain({**data, key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "clip", {}, {"contract": "clip"}, {1: 2}])
def test_a_manifest_of_another_shape_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match=r"expected|missing|unknown"):
        Preprocess.from_plain(data)


def test_an_unknown_key_is_refused() -> None:
    data = Preprocess.for_contract("clip", 224).to_plain()
    with pytest.raises(ValueError, match=r"expected|missing|unknown"):
        Preprocess.from_plain({**data, "gamma": 2.2})


def test_an_unknown_contract_lists_the_known_ones() -> None:
    unknown = partial(Preprocess.for_contract, "imagenet", 224)
    assert refused(unknown) == ("contract", "imagenet")
    assert_refused(unknown, UsageError, *(contract.value for contract in Contract))


@pytest.mark.parametrize("image_size", [0, -1, 4097, True, 224.0])
def test_an_impossible_image_size_is_a_usage_error(image_size: int) -> None:
    with pytest.raises(UsageError) as error:
        Preprocess.for_contract("clip", image_size)
    assert (error.value.argument, error.value.value) == ("image_size", image_size)


@pytest.mark.parametrize(
    ("name", "contract"),
    [("scpnet", Contract.CLIP_BILINEAR), ("ml2p", Contract.SQUASH_CIFAR), ("gen_mlzsl", Contract.SQUASH)],
)
def test_pixels_of_published_systems(name: str, contract: Contract) -> None:
    """What their own transforms made of large patches of colour under noise: every 36th row and column, to fp32's rounding."""
    golden = np.load(GOLDEN)
    for i, ((height, width), seed) in enumerate(zip(golden["sizes"], golden["seeds"], strict=True)):
        rng = np.random.RandomState(seed)
        coarse = rng.uniform(0, 256, (5, 6, 3))
        patches = coarse[np.arange(height) * 5 // height][:, np.arange(width) * 6 // width]
        values = np.clip(patches + 40 * rng.standard_normal((height, width, 3)), 0, 255).astype(np.uint8)
        pixels = Preprocess.for_contract(contract, 224)(Image.fromarray(values))
        np.testing.assert_allclose(pixels[:, ::36, ::36], golden[f"{name}_{i}"], rtol=0, atol=1e-6)
