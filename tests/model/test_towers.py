"""The two towers against open_clip's, and what a GPU needs of them that a CPU can show."""

from __future__ import annotations

from collections import Counter
from typing import Any

import open_clip
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.random_weights import images
from sigrl_deploy.checkpoints.open_clip_configs import ClipConfig, clip_config
from sigrl_deploy.config import Arch, ModelConfig, Precision, TextConfig
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.model.sigrl import SigRL, encode_image, encode_text
from sigrl_deploy.model.text import TextTransformer
from sigrl_deploy.model.towers import typed
from sigrl_deploy.model.transformer import LayerNorm
from sigrl_deploy.model.vit import PatchEmbedding, VisionTransformer

# Of a feature's norm: the same formula in another order of sums. In fp32 either is up to 2e-7 off its value in float64.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
MODELS = ["ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"]
VOCABULARY = 300
SMALL = VisionConfig(image_size=30, patch_size=7, width=96, layers=2, heads=3, mlp_ratio=2.3)
SMALL_TEXT = TextConfig(width=48, layers=2, heads=4, context_length=11, vocab_size=VOCABULARY, mlp_ratio=1.7)


def two_layers(name: str) -> ClipConfig:
    config = clip_config(name)
    assert config is not None
    return replace(config, vision=replace(config.vision, layers=2), text=replace(config.text, layers=2, vocab_size=VOCABULARY))


def open_clips(config: ClipConfig) -> open_clip.CustomTextCLIP:
    """open_clip's model of the same sizes."""
    vision, text = (
        {"width": part.width, "layers": part.layers, "mlp_ratio": part.mlp_ratio} for part in (config.vision, config.text)
    )
    vision |= {"image_size": config.vision.image_size, "patch_size": config.vision.patch_size}
    vision |= {"head_width": config.vision.width // config.vision.heads}
    text |= {"context_length": config.text.context_length, "vocab_size": VOCABULARY, "heads": config.text.heads}
    return open_clip.CustomTextCLIP(config.embed_dim, vision, text, quick_gelu=config.vision.quick_gelu).eval()


def shaken(model: open_clip.CustomTextCLIP) -> open_clip.CustomTextCLIP:
    """With random biases and norms: they start at zeros and ones, which would hide one that is left out."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def tokens_of(visual: Any, pixels: Tensor) -> Tensor:
    """open_clip's parts, put together so that the last norm and the projection reach every token."""
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    return visual.ln_post(visual.transformer(visual.ln_pre(x))) @ visual.proj


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert ((found - expected).abs().amax(-1) / expected.norm(dim=-1)).max() <= TOLERANCE[expected.dtype]


def text_ids(length: int) -> Tensor:
    ids = torch.randint(1, VOCABULARY - 1, (3, length), generator=torch.Generator().manual_seed(1))
    for row, end in enumerate((length - 1, 2, length // 2)):
        ids[row, end:] = 0
        ids[row, end] = VOCABULARY - 1  # the end of text is the largest id
    return ids


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_features_equal_open_clips(name: str) -> None:
    config = two_layers(name)
    assert_same_features(config, shaken(open_clips(config)))


@pytest.mark.parametrize("quick_gelu", [True, False])
@torch.inference_mode()
def test_features_of_odd_sizes_equal_open_clips_in_float64(quick_gelu: bool) -> None:
    config = ClipConfig("odd", 24, replace(SMALL, quick_gelu=quick_gelu), replace(SMALL_TEXT, quick_gelu=quick_gelu))
    assert_same_features(config, shaken(open_clips(config)).double())


def assert_same_features(config: ClipConfig, theirs: open_clip.CustomTextCLIP) -> None:
    with torch.device("meta"):
        visual = VisionTransformer(config.vision, config.embed_dim)
        text = TextTransformer(config.text, config.embed_dim)
    visual.load_state_dict(theirs.visual.state_dict(), assign=True)
    text.load_state_dict(theirs.text.state_dict(), assign=True)
    pixels = torch.from_numpy(images(1, config.vision.image_size, seed=0)).to(visual.proj.dtype)
    expected = tokens_of(theirs.visual, pixels)
    patches, global_feature = encode_image(visual, pixels)
    assert_close(patches, expected[:, 1:])
    assert_close(global_feature, theirs.encode_image(pixels))
    ids = text_ids(config.text.context_length)
    assert_close(encode_text(text, ids), theirs.encode_text(ids))
    short = ids[1:, : config.text.context_length // 2 + 1]
    assert_close(encode_text(text, short), theirs.encode_text(ids[1:]))  # behind the end of text nothing counts


def test_untrained_towers_are_drawn_as_open_clip_draws_them() -> None:
    """By the same names in the same order, so that a recipe with a seed trains the same model."""
    torch.manual_seed(3)
    theirs = open_clips(ClipConfig("small", 24, SMALL, SMALL_TEXT)).state_dict()
    del theirs["logit_scale"]
    torch.manual_seed(3)
    ours = SigRL(ModelConfig(Arch.CLIP, 24, 1, SMALL, SMALL_TEXT)).state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize(("size", "patch"), [(30, 7), (28, 7), (5, 5), (9, 1)])
def test_patch_embedding_is_the_convolution(size: int, patch: int) -> None:
    torch.manual_seed(0)
    embedding = PatchEmbedding(patch, 12).double()
    pixels = torch.randn(2, 3, size, size, dtype=torch.float64)
    expected = F.conv2d(pixels, embedding.weight, stride=patch).flatten(2).transpose(1, 2)
    assert torch.allclose(embedding(pixels), expected, rtol=0, atol=1e-13)


class Kernels(TorchDispatchMode):
    """Counts the dispatched operations that are no views: each is a kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.found[func.overloadpacket.__name__] += 1
        return out


def bf16_model(layers: int, quick_gelu: bool) -> SigRL:
    vision, text = (replace(part, layers=layers, quick_gelu=quick_gelu) for part in (SMALL, SMALL_TEXT))
    return typed(SigRL(ModelConfig(Arch.MKT, 24, 4, vision, text)), Precision.BF16).eval()


@pytest.mark.parametrize("quick_gelu", [True, False])
@torch.no_grad()
def test_a_layer_computes_nothing_beside_its_formula(quick_gelu: bool) -> None:
    """No copy of queries, keys, values or heads. Two casts surround each norm, and QuickGELU is three operations."""
    gelu = {"mul": 2, "sigmoid": 1} if quick_gelu else {"gelu": 1}
    inputs = {encode_image: torch.zeros(2, 3, 30, 30, dtype=torch.bfloat16), encode_text: torch.ones(3, 9, dtype=torch.int64)}
    for encode, given in inputs.items():
        counts = []
        for layers in (1, 2):
            model = bf16_model(layers, quick_gelu)
            with Kernels() as kernels:
                encode(model.visual if encode is encode_image else model.text, given)  # type: ignore[operator]
            counts.append(kernels.found)
        layer = counts[1] - counts[0]
        attention = [name for name in layer if "scaled_dot_product" in name]
        assert [layer.pop(name) for name in attention] == [1]
        assert counts[0]["clone"] == (encode is encode_image)  # pixels put into patches
        assert layer == {"native_layer_norm": 2, "_to_copy": 4, "addmm": 4, "add": 2} | gelu


@torch.inference_mode()
def test_a_cuda_graph_can_hold_them() -> None:
    """On the meta device nothing has values that a shape could depend on; and one graph holds all that is computed."""
    model = bf16_model(2, quick_gelu=True)
    pixels, ids = torch.rand(2, 3, 30, 30).bfloat16(), text_ids(9)
    for encode, tower, given in ((encode_image, model.visual, pixels), (encode_text, model.text, ids)):
        expected = encode(tower, given)  # type: ignore[operator]
        found = torch.compile(encode, fullgraph=True, backend="eager")(tower, given)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        shapes = encode(tower.to("meta"), given.to("meta"))  # type: ignore[operator, union-attr]
        torch.testing.assert_close(shapes, expected.to("meta") if isinstance(expected, Tensor) else shapes)


@torch.inference_mode()
def test_layer_norms_of_a_bf16_model_compute_in_fp32() -> None:
    model = bf16_model(1, quick_gelu=True)
    norms = [module for module in model.modules() if isinstance(module, LayerNorm)]
    assert len(norms) == 7  # two a block of either tower, two around the ViT's, one behind the text's
    assert {parameter.dtype for norm in norms for parameter in norm.parameters()} == {torch.float32}
    assert model.visual.conv1.weight.dtype == model.visual.proj.dtype == torch.bfloat16
    x = (1000 + torch.randn(5, 96)).bfloat16()  # where bf16 sums lose everything
    norm = model.visual.ln_pre
    expected = F.layer_norm(x.double(), (96,), norm.weight.double(), norm.bias.double())
    assert norm(x).dtype == torch.bfloat16
    assert torch.allclose(norm(x).double(), expected, rtol=2**-8, atol=1e-3)  # one rounding to bf16
