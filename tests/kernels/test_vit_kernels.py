"""The fused ViT against float64 and the plain one, by the rule of kernel_rule.py; and how many kernels it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sigrl_deploy.config import Arch, ModelConfig, Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.kernels import vit
from sigrl_deploy.model.sigrl import SigRL, encode_image
from sigrl_deploy.model.towers import typed
from tests.support.kernel_rule import DEVICE, DTYPES, MARKS, check, draw, in_float64

PRECISIONS = {torch.float32: Precision.FP32, torch.float16: Precision.FP16, torch.bfloat16: Precision.BF16}
pytestmark = MARKS


def tower(config: VisionConfig, dtype: torch.dtype, dim: int = 40) -> torch.nn.Module:
    """A ViT with random weights, those of its norms and biases too, typed as an exported one."""
    model = SigRL(ModelConfig(Arch.CLIP, dim, 1, config)).eval()
    for name, parameter in model.visual.named_parameters():
        if "ln_" in name or "bias" in name:
            parameter += 0.2 * torch.randn_like(parameter)
    return typed(model, PRECISIONS[dtype]).visual.to(DEVICE)


# Picture, patch, width, layers, heads: 5 tokens, pixels beyond the last patch, OpenAI's widths and tokens, heads of 80, GELU.
TOWERS = [
    VisionConfig(16, 8, 24, 1, 3),
    VisionConfig(83, 16, 96, 2, 2),
    VisionConfig(56, 8, 768, 1, 12),
    VisionConfig(56, 4, 64, 1, 1),
    VisionConfig(224, 14, 160, 1, 2, quick_gelu=False),
    VisionConfig(28, 14, 1280, 1, 16, quick_gelu=False),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", TOWERS, ids=lambda config: f"{config.grid**2 + 1}x{config.width}")
def test_encode_image(config: VisionConfig, dtype: torch.dtype) -> None:
    batch = 1 if config.grid > 8 else 2
    visual, pixels = tower(config, dtype), draw(batch, 3, config.image_size, config.image_size, dtype=dtype)
    got = vit.encode_image(visual, pixels)
    for ours, plain, exact in zip(got, encode_image(visual, pixels), exact_features(visual, pixels), strict=True):
        assert ours.dtype is dtype
        assert ours.is_contiguous()
        check(ours, plain, exact, dtype)


def exact_features(visual: torch.nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    return encode_image(in_float64(visual), pixels.double())


@pytest.mark.parametrize("dtype", DTYPES)
def test_pixels_of_a_byte_are_normalised(dtype: torch.dtype) -> None:
    visual = tower(VisionConfig(39, 13, 32, 1, 2), dtype)
    pixels = torch.randint(0, 256, (2, 3, 39, 39), dtype=torch.uint8, device=DEVICE)
    statistics = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], device=DEVICE)
    mean, deviation = statistics[:, :, None, None]
    normalised = (pixels / torch.tensor(255.0, device=DEVICE) - mean) / deviation
    assert torch.equal(vit.cut(pixels, 13, dtype, statistics), vit.cut(normalised, 13, dtype))
    got, expected = vit.encode_image(visual, pixels, statistics), vit.encode_image(visual, normalised)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


def test_patches_are_those_of_a_convolution() -> None:
    pixels = draw(2, 3, 23, 23, dtype=torch.float32)
    unfolded = torch.nn.functional.unfold(pixels[:, :, :20, :20], 5, stride=5).transpose(1, 2)
    assert torch.equal(vit.cut(pixels, 5, torch.float32), unfolded)


@pytest.mark.parametrize("how", vit.candidates(80), ids=lambda how: how.name)
def test_every_candidate_computes_the_same(how: Any) -> None:
    x, delta, norm = (
        draw(2, 7, 80, dtype=torch.float32),
        draw(14, 80, dtype=torch.float32),
        torch.nn.LayerNorm(80, device=DEVICE),
    )
    total = x + delta.view_as(x)
    got = vit.add_norm(x, delta, norm, how=how)
    assert torch.equal(x, total)
    assert torch.allclose(got.view_as(x), norm(total), atol=1e-6)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_layer_takes_eight_kernels(quick_gelu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in a trace: what one layer more dispatches and launches."""

    def kernels(layers: int) -> list[str]:
        visual = tower(VisionConfig(32, 8, 64, layers, 2, quick_gelu=quick_gelu), torch.bfloat16)
        with Launches() as launched, monkeypatch.context() as patched:
            for name in ("patches_kernel", "embed_kernel", "add_norm_kernel", "quick_gelu_kernel"):
                patched.setattr(vit, name, Recorded(name, launched.names))
            vit.encode_image(visual, draw(2, 3, 32, 32, dtype=torch.bfloat16))
        return launched.names

    two, three = kernels(2), kernels(3)
    assert three.count("add_norm_kernel") == 6  # the trace sees what it is to count
    assert len(three) - len(two) == 8, (two, three)


class Launches(TorchDispatchMode):
    """Names of the PyTorch ops that compute: neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in str(func) and "_unsafe_view" not in str(func):
            self.names.append(str(func))
        return result


class Recorded:
    """A kernel that is counted and not run."""

    def __init__(self, name: str, names: list[str]) -> None:
        self.name, self.names = name, names

    def __getitem__(self, grid: object) -> Any:
        return lambda *args, **kwargs: self.names.append(self.name)


def test_what_the_kernels_cannot_take_is_said() -> None:
    visual = tower(VisionConfig(16, 8, 24, 1, 3), torch.float32)
    with pytest.raises(UsageError, match=r"expected \[B, 3, S, S\]"):
        vit.encode_image(visual, draw(1, 3, 16, 24, dtype=torch.float32))
    with pytest.raises(UsageError, match=r"weights are torch\.float64; expected fp32, fp16 or bf16"):
        vit.encode_image(visual.double(), draw(1, 3, 16, 16, dtype=torch.float32))


def test_pixels_of_another_size_are_refused() -> None:
    visual = tower(VisionConfig(32, 16, 32, 1, 2), torch.float32)
    with pytest.raises(UsageError, match="9 patches; the model has 4"):
        vit.encode_image(visual, draw(1, 3, 48, 48, dtype=torch.float32))
