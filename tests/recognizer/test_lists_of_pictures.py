"""What is taken for a list of pictures, and what to do about anything else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigrl_deploy.errors import UsageError
from sigrl_deploy.recognizer.checks import several

STACKED = np.zeros((2, 7, 5, 3), np.uint8)


def test_lists_and_generators_are_passed_on() -> None:
    for images in (["a.jpg"], (path for path in ("a.jpg", "b.jpg")), list(STACKED)):
        assert several(images, "images") is images


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        (Path(__file__).parent, "is a folder; pass its files"),
        (str(Path(__file__).parent), "is a folder; pass its files"),
        (STACKED, r"use list\(array\)"),
        (STACKED[0], "is one picture"),
        ("cat.jpg", "is one picture"),
        (None, "is a NoneType"),
        (5, "is an int"),
    ],
)
def test_anything_else_is_refused_with_advice(images: Any, advice: str) -> None:
    with pytest.raises(UsageError, match=advice) as caught:
        several(images, "images")
    assert caught.value.argument == "images"
