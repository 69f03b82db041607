"""open_clip's models, whose heads and activation come from a named config, against open_clip's own forward pass."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from benchmarks.random_weights import Variant, images, text_shapes, vision_shapes
from sigrl_deploy.checkpoints.building import add_text_tower, build_model
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.checkpoints.open_clip_configs import clip_config
from sigrl_deploy.checkpoints.open_clip_weights import load_pretrained
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.errors import CheckpointError, UsageError
from sigrl_deploy.model.sigrl import SigRL, encode_image
from sigrl_deploy.pictures.preprocess import CLIP_MEAN
from tests.support.checkpoints import TINY, TOLERANCE, clip_of, loaded, mkt, saved, text, token_ids
from tests.support.refusals import assert_refused, refused

GELU_80 = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 160, "head_width": 80, "patch_size": 16, "mlp_ratio": 4.9231},
    "text_cfg": {"context_length": 77, "vocab_size": 50, "width": 96, "heads": 2, "layers": 1},
}
OPENAI_LIKE = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1},
}


def reference(config: dict[str, Any]) -> open_clip.CLIP:
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2)
    return model


def assert_same_features(model: SigRL, expected: open_clip.CLIP) -> None:
    pixels = torch.from_numpy(images(2, 32, seed=0))
    with torch.no_grad():
        found, wanted = encode_image(model.visual, pixels)[1], expected.encode_image(pixels)
        assert torch.allclose(found, wanted, atol=TOLERANCE * wanted.abs().max())
        found, wanted = model.encode_text(token_ids()), expected.encode_text(token_ids())
        assert torch.allclose(found, wanted, atol=TOLERANCE * wanted.abs().max())


@pytest.mark.parametrize("config", [GELU_80, OPENAI_LIKE], ids=["gelu, heads of 80", "quick_gelu"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_open_clip_model_by_its_config(tmp_path: Path, config: dict[str, Any], wrapped: bool) -> None:
    expected = reference(config)
    path = saved(tmp_path / "open_clip.pt", expected.state_dict())
    named = tmp_path / "config.json"
    named.write_text(json.dumps({"model_cfg": config} if wrapped else config))
    assert_same_features(loaded(path, clip=str(named)), expected)
    assert_refused(lambda: loaded(path), CheckpointError, "open_clip.pt", "`clip_config`")


def test_openai_convention_is_quick_gelu_and_heads_of_64(tmp_path: Path) -> None:
    expected = reference(OPENAI_LIKE)
    marked = expected.state_dict() | {"input_resolution": torch.tensor(32)}
    assert_same_features(loaded(saved(tmp_path / "a.pt", marked)), expected)


def test_wider_than_openais_is_not_guessed(tmp_path: Path) -> None:
    vision = mkt(replace(TINY, width=1280))
    path = saved(tmp_path / "a.pth", vision)
    assert_refused(lambda: loaded(path), CheckpointError, "a.pth", "1280", "`clip_config`")


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """open_clip models that only this test knows."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    configs = {"tiny-gelu": GELU_80, "tiny-quick": OPENAI_LIKE}
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return configs


@pytest.mark.parametrize("name", ["tiny-gelu", "tiny-quick"])
def test_pretrained_by_name(tmp_path: Path, registered: dict[str, Any], name: str) -> None:
    expected = reference(registered[name])
    path = saved(tmp_path / "odd:name.pt", expected.state_dict())  # the value is split at its first colon only
    checkpoint, clip = load_pretrained(f"{name}:{path}")
    model = build_model(checkpoint, model_config(checkpoint, clip=clip))
    add_text_tower(model, checkpoint, clip)
    assert_same_features(model, expected)
    assert clip_config(name) == clip


def test_pretrained_tag_that_was_trained_with_quick_gelu(
    tmp_path: Path, registered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like ViT-B-16:openai, which open_clip lists under a config with GELU."""
    config = {**OPENAI_LIKE, "quick_gelu": False}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quick", config)
    path = saved(tmp_path / "weights.pt", reference(OPENAI_LIKE).state_dict())
    tag = {"file": str(path), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-quick", {"tag": tag})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint, clip = load_pretrained("tiny-quick:tag")
    model = build_model(checkpoint, model_config(checkpoint, clip=clip))
    add_text_tower(model, checkpoint, clip)
    assert_same_features(model, reference(OPENAI_LIKE))


def test_a_file_with_a_listed_name_as_its_config(
    tmp_path: Path, registered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hub holds, fetched by hand: the name says the activation, and how pictures are prepared."""
    wide = {**OPENAI_LIKE, "quick_gelu": False, "text_cfg": {**OPENAI_LIKE["text_cfg"], "vocab_size": 49408}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quick", wide)
    half = (0.5, 0.5, 0.5)
    tag = {
        "hf_hub": "a/b/",
        "quick_gelu": True,
        "mean": half,
        "std": half,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-quick", {"tag": tag})
    expected = reference({**wide, "quick_gelu": True})
    path = saved(tmp_path / "open_clip_pytorch_model.bin", expected.state_dict())
    found = load_model(CheckpointOptions(path, clip_config="tiny-quick:tag"))
    assert_same_features(found.model, expected)
    assert (found.preprocess.mean, found.preprocess.std) == (half, half)
    assert load_model(CheckpointOptions(path, clip_config="tiny-quick")).preprocess.mean == CLIP_MEAN


@pytest.mark.parametrize("value", ["tiny-quick:", "tiny-quick:no-such-tag", "no-such-model:openai", "hf-hub:a/b", "openai:x"])
def test_pretrained_that_does_not_exist(registered: dict[str, Any], value: str) -> None:
    assert refused(lambda: load_pretrained(value)) == ("checkpoint", value)
    assert refused(lambda: load_pretrained(value, "text_tower")) == ("text_tower", value)


@pytest.mark.parametrize(("name", "layers"), [("ViT-B-16", 12), ("ViT-L-14", 24)])
def test_configs_of_the_files_own_sizes_are_suggested(tmp_path: Path, name: str, layers: int) -> None:
    """An open_clip file that is not known to be OpenAI's: several configs have its sizes."""
    config = open_clip.get_model_config(name)
    vision, text_config = config["vision_cfg"], config["text_cfg"]
    variant = Variant(layers, vision["width"], 224, 12, text_config["width"], vision["patch_size"], embed=config["embed_dim"])
    shapes = {key: shape for key, shape in vision_shapes(variant).items() if "resblocks" not in key or "ln_1.bias" in key}
    texts = {key: shape for key, shape in text_shapes(variant).items() if "resblocks" not in key or "ln_1.bias" in key}
    values = clip_of(*({key: torch.zeros(shape) for key, shape in part.items()} for part in (shapes, texts)))
    with pytest.raises(CheckpointError, match=r"clip\.pt: ") as caught:
        loaded(saved(tmp_path / "clip.pt", values))
    suggested = re.findall(r"ViT[\w-]+", str(caught.value).partition("`clip_config`")[2])
    assert suggested[0] == name
    assert f"{name}-quickgelu" in suggested
    assert len(suggested) <= 3


UNSUPPORTED = {
    "hugging face text tower": ("xlm-roberta-base-ViT-B-32", "text_cfg.hf_model_name"),
    "another tokenizer": ("ViT-H-14-worldwide", "text_cfg.hf_tokenizer_name"),
    "timm": ("EVA02-B-16", "vision_cfg.timm_model_name"),
    "attentional pooling": ("coca_ViT-B-32", "vision_cfg.attentional_pool"),
    "SigLIP": ("ViT-B-16-SigLIP", "vision_cfg.timm_model_name"),
}


@pytest.mark.parametrize(("name", "expected"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_configs(name: str, expected: str) -> None:
    assert_refused(lambda: clip_config(name), CheckpointError, name, expected)


@pytest.mark.parametrize(("name", "width"), [("ViT-H-14", 80), ("ViT-g-14", 88), ("ViT-bigG-14", 104), ("ViT-B-16", 64)])
def test_head_widths_of_open_clips_configs(name: str, width: int) -> None:
    config = clip_config(name)
    assert config is not None
    assert config.vision.width // config.vision.heads == width
    assert not config.vision.quick_gelu


BAD_CONFIGS = {
    "no JSON": "{",
    "a list": "[]",
    "no towers": '{"embed_dim": 4}',
    "tower is a list": '{"embed_dim": 4, "vision_cfg": [1], "text_cfg": {}}',
    "tower is a text": '{"embed_dim": 4, "vision_cfg": "x", "text_cfg": {}}',
    "wrapped list": '{"model_cfg": []}',
    "null width": '{"embed_dim": 4, "vision_cfg": {"width": null}, "text_cfg": {}}',
    "two image sizes": '{"embed_dim": 4, "vision_cfg": {"image_size": [224, 112]}, "text_cfg": {}}',
    "odd heads": '{"embed_dim": 4, "vision_cfg": {}, "text_cfg": {"heads": 7}}',
    "no head width": '{"embed_dim": 4, "vision_cfg": {"head_width": 0}, "text_cfg": {}}',
    "NaN": '{"embed_dim": 4, "vision_cfg": {"mlp_ratio": NaN}, "text_cfg": {}}',
    "NaN for a size": '{"embed_dim": NaN, "vision_cfg": {}, "text_cfg": {}}',
    "infinite": '{"embed_dim": 1e400, "vision_cfg": {}, "text_cfg": {}}',
    "infinite width": '{"embed_dim": 4, "vision_cfg": {"width": 1e400}, "text_cfg": {}}',
    "true": '{"embed_dim": true, "vision_cfg": {}, "text_cfg": {}}',
    "true layers": '{"embed_dim": 4, "vision_cfg": {"layers": true}, "text_cfg": {}}',
    "a billion layers": '{"embed_dim": 4, "vision_cfg": {"layers": 1000000000}, "text_cfg": {}}',
    "a billion words": '{"embed_dim": 4, "vision_cfg": {}, "text_cfg": {"vocab_size": 1000000000}}',
    "a long context": '{"embed_dim": 4, "vision_cfg": {}, "text_cfg": {"context_length": 100000}}',
    "as wide as nothing is": '{"embed_dim": 4, "vision_cfg": {"width": 1048576}, "text_cfg": {}}',
    "deep": '{"embed_dim": 4, "vision_cfg": ' + "[" * 200_000 + "}",
    "long": '{"embed_dim": 4, "vision_cfg": {"width": "' + "a" * 200_000 + '"}, "text_cfg": {}}',
    "longer than a config": "[" + "1," * 1_000_000 + "1]",
    "a number of many digits": '{"embed_dim": ' + "1" * 10_000 + ', "vision_cfg": {}, "text_cfg": {}}',
    "head wider than the tower": '{"embed_dim": 4, "vision_cfg": {"head_width": 2000}, "text_cfg": {}}',
}


@pytest.mark.parametrize("content", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_config_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        clip_config(str(path))
    assert caught.value.argument == "clip_config"
    assert str(caught.value.value) == str(path)
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize("name", ["ViT-nowhere", "missing.json", "hf-hub:a/b", "ViT-B-16:no-such-tag", ""])
def test_no_such_config(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        clip_config(name)
    assert caught.value.argument == "clip_config"


def test_wrong_config_names_the_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path / "clip.pt", clip_of(mkt(), text()))
    assert_refused(lambda: loaded(path, clip="ViT-B-16"), CheckpointError, "clip.pt", " visual.", "[768")
