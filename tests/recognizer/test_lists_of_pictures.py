"""What is taken for a list of pictures, and what to do about anything else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigrl_deploy.errors import UsageError
from sigrl_deploy.recognizer.checks import several
from tests.support.refusals import assert_refused, refused

STACKED = np.zeros((2, 7, 5, 3), np.uint8)


def test_lists_and_generators_are_passed_on() -> None:
    for images in (["a.jpg"], (path for path in ("a.jpg", "b.jpg")), list(STACKED)):
        assert several(images, "images") is images


@pytest.mark.parametrize(
    ("images", "fact"),
    [
        (Path(__file__).parent, ".iterdir()"),
        (str(Path(__file__).parent), ".iterdir()"),
        (STACKED, "list(array)"),
        (STACKED[0], "one picture"),
        ("cat.jpg", "images='cat.jpg'"),
        (None, "a NoneType"),
        (5, "an int"),
    ],
)
def test_anything_else_is_refused_with_what_it_is_or_what_to_give(images: Any, fact: str) -> None:
    assert refused(lambda: several(images, "images"))[0] == "images"
    assert_refused(lambda: several(images, "images"), UsageError, fact)
