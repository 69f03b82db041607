"""What to install where no TensorRT is there, or where it lacks only torch."""

import pytest

from sigrl_deploy.config import Backend
from sigrl_deploy.errors import UsageError
from sigrl_deploy.tensorrt import library


def test_without_a_library_the_extra_of_the_one_on_pypi_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        library.open_library()
    assert caught.value.extra == "tensorrt-rtx"


def test_torch_beside_tensorrt_comes_with_the_extra_that_has_it_alone() -> None:
    assert Backend.TENSORRT.extra == "export"
