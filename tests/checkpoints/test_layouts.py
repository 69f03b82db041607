"""Every layout gives the same model; every kind of damage gives an error that names the tensor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.random_weights import Variant, images, label_embeddings, sigrl_shapes, text_shapes
from sigrl_deploy.checkpoints.building import add_text_tower
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.model.sigrl import encode_image
from tests.support.checkpoints import (
    TINY,
    TOLERANCE,
    State,
    clip_of,
    loaded,
    mkt,
    openai,
    prefixed,
    saved,
    scores,
    sigrl,
    text,
    token_ids,
)
from tests.support.refusals import assert_refused


@pytest.mark.parametrize(
    "prefix", ["module.", "f.feature_extractor.", "module.f.feature_extractor.", "f.module.feature_extractor."]
)
def test_prefixed_sigrl_gives_the_plain_models_scores(tmp_path: Path, prefix: str) -> None:
    plain = loaded(saved(tmp_path / "plain.pth", sigrl()))
    beside = prefix.replace("feature_extractor.", "")
    others = {} if prefix == "module." else prefixed(beside + "vision_extractor.", mkt())
    others |= {} if prefix == "module." else prefixed(beside + "text_extractor.", text())
    model = loaded(saved(tmp_path / "prefixed.pth", {**others, **prefixed(prefix, sigrl())}))
    assert model.config == plain.config
    assert torch.equal(scores(model), scores(plain))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_wrapped_sigrl(tmp_path: Path, wrapper: str) -> None:
    plain = loaded(saved(tmp_path / "plain.pth", sigrl()))
    model = loaded(saved(tmp_path / "wrapped.pt", {"epoch": 3, wrapper: sigrl(), "optimizer": {"lr": 0.1}}))
    assert torch.equal(scores(model), scores(plain))


def test_safetensors_old_format_and_half_precision(tmp_path: Path) -> None:
    values = {name: value.half() for name, value in sigrl().items()}
    plain = scores(loaded(saved(tmp_path / "half.pth", values)))
    save_file(values, tmp_path / "s.safetensors")
    torch.save(values, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(scores(loaded(tmp_path / "s.safetensors")), plain)
    assert torch.equal(scores(loaded(tmp_path / "old.pth")), plain)


@pytest.mark.parametrize("arch", [Arch.SIGRL, Arch.MKT, Arch.CLIP_FT, Arch.CLIP])
def test_arch_picks_the_matching_rule(tmp_path: Path, arch: Arch) -> None:
    path = saved(tmp_path / "mkt.pth", mkt())
    assert model_config(load_checkpoint(path)).arch is Arch.MKT
    if arch is Arch.SIGRL:
        assert_refused(lambda: loaded(path, arch), CheckpointError, "mkt.pth", "SemanticDecoupling.fc3.weight")
        return
    model = loaded(path, arch)
    rows = torch.from_numpy(label_embeddings(6, seed=1))
    with torch.no_grad():
        patches, image = encode_image(model.visual, torch.from_numpy(images(2, 48, seed=2)))
    overall = image @ rows.T
    best = (patches @ rows.T).sort(dim=1, descending=True).values[:, :18].mean(1)
    unit = torch.nn.functional.normalize
    expected = {
        Arch.MKT: (unit(best, dim=1) + unit(overall, dim=1)) / 2,
        Arch.CLIP_FT: unit(overall, dim=1),
        Arch.CLIP: unit(image, dim=1) @ unit(rows, dim=1).T,
    }[arch]
    assert torch.allclose(scores(model), expected, atol=TOLERANCE)


def test_clip_layouts_agree_with_mkt_and_each_other(tmp_path: Path) -> None:
    plain = loaded(saved(tmp_path / "mkt.pth", mkt()), Arch.CLIP)
    add_text_tower(plain, load_checkpoint(saved(tmp_path / "text.pth", text())))
    custom = clip_of(mkt(), prefixed("text.", text())) | {"input_resolution": torch.tensor(48)}
    for name, values in {"openai": openai(), "custom": custom, "parallel": prefixed("module.", openai())}.items():
        model = loaded(saved(tmp_path / f"{name}.pt", values))
        assert model.config == plain.config
        assert torch.equal(scores(model), scores(plain))
        assert torch.equal(model.encode_text(token_ids()), plain.encode_text(token_ids()))


SIZES = {
    "patch 32": Variant(layers=1, width=64, image_size=96, text_layers=1, text_width=64, patch=32),
    "patch 14": Variant(layers=2, width=64, image_size=42, text_layers=1, text_width=64, patch=14),
    "width 192, 3 layers": Variant(layers=3, width=192, image_size=32, text_layers=1, text_width=64),
}


@pytest.mark.parametrize("variant", SIZES.values(), ids=SIZES)
def test_sizes_are_read_off_the_shapes(tmp_path: Path, variant: Variant) -> None:
    vision = loaded(saved(tmp_path / "a.pth", mkt(variant))).config.vision
    expected = (variant.image_size, variant.patch, variant.width, variant.layers, variant.width // 64)
    assert (vision.image_size, vision.patch_size, vision.width, vision.layers, vision.heads) == expected


def test_another_embedding_width(tmp_path: Path) -> None:
    values = mkt() | {"projection_dist": torch.randn(64, 768)}
    assert loaded(saved(tmp_path / "a.pth", values)).config.embed_dim == 768


DAMAGE: dict[str, tuple[State, str, str]] = {
    "visual.proj": ({"projection_dist": torch.zeros(64)}, "projection_dist", "2 dimensions"),
    "patches": ({"conv1.weight": torch.zeros(64, 3, 16)}, "conv1.weight", "4 dimensions"),
    "patches of size 0": ({"conv1.weight": torch.zeros(64, 3, 0, 0)}, "conv1.weight", "above 0"),
    "no square": ({"positional_embedding": torch.zeros(9, 64)}, "positional_embedding", "square number"),
    "class token alone": ({"positional_embedding": torch.zeros(1, 64)}, "positional_embedding", "square number"),
    "positions": ({"positional_embedding": torch.zeros(10, 32)}, "positional_embedding", "[10, 64]"),
    "ln_post": ({"ln_post.bias": torch.zeros(65)}, "ln_post.bias", "[64]"),
    "hidden": ({"transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(65, 64)}, "c_fc.weight", "[256, 64]"),
    "W1": ({"SemanticDecoupling.fc3.weight": torch.zeros(512, 511)}, "SemanticDecoupling.fc3.weight", "[512, 512]"),
    "Wf": ({"DecouplingSemantic.fc1.weight": torch.zeros(512, 512)}, "DecouplingSemantic.fc1.weight", "[512, 1024]"),
    "W of layer 1": ({"GATv2_1.layer1.linear_l.weight": torch.zeros(128, 256)}, "layer1.linear_l.weight", "[128, 512]"),
    "W of layer 2": ({"GATv2_1.output.linear_l.weight": torch.zeros(256, 128)}, "output.linear_l.weight", "[512, 128]"),
    "widths of layer 2": ({"GATv2_1.output.linear_l.weight": torch.zeros(512, 64)}, "output.linear_l.weight", "[512, 128]"),
    "a": ({"GATv2_1.layer1.attn.weight": torch.zeros(32)}, "layer1.attn.weight", "2 dimensions"),
    "a for every head": ({"GATv2_1.layer1.attn.weight": torch.zeros(4, 32)}, "layer1.attn.weight", "[1, 32]"),
    "a that divides nothing": ({"GATv2_1.layer1.attn.weight": torch.zeros(1, 30)}, "layer1.attn.weight", "30"),
    "NaN": ({"SemanticDecoupling.fc3.bias": torch.full((512,), torch.nan)}, "SemanticDecoupling.fc3.bias", "NaN"),
    "infinite": ({"ln_pre.weight": torch.full((64,), torch.inf)}, "ln_pre.weight", "infinite"),
    "NaN in the graph": ({"GATv2_1.layer1.linear_l.weight": torch.full((128, 512), torch.nan)}, "layer1.linear_l", "NaN"),
    "unshared": ({"GATv2_1.output.linear_r.weight": torch.zeros(512, 128)}, "output.linear_l", "linear_r.weight"),
    "layer scale": ({"transformer.resblocks.0.ls_1.gamma": torch.ones(64)}, "resblocks.0.ls_1.gamma", "no place"),
    "half a second layer": ({"transformer.resblocks.1.ln_1.weight": torch.ones(64)}, "resblocks.1.", "missing"),
}


@pytest.mark.parametrize(("change", "tensor", "fact"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_damaged_tensor_is_named(tmp_path: Path, change: State, tensor: str, fact: str, prefix: str) -> None:
    path = saved(tmp_path / "broken.pth", prefixed(prefix, sigrl() | change))
    assert_refused(lambda: loaded(path), CheckpointError, "broken.pth", f" {prefix}", tensor, fact)


UNUSED = ("projection.", "GATv2_1.layer1.linear_r", "GATv2_1.output.linear_r")


@pytest.mark.parametrize("name", [name for name in sigrl_shapes(TINY) if not name.startswith(UNUSED)])
def test_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    values = sigrl()
    del values[name]
    path = saved(tmp_path / "broken.pth", values)
    assert_refused(lambda: loaded(path), CheckpointError, "broken.pth", f" {name} ")


@pytest.mark.parametrize("name", ["class_embedding", "projection_dist"])
def test_missing_tensor_that_tells_the_layout(tmp_path: Path, name: str) -> None:
    values = mkt()
    del values[name]
    path = saved(tmp_path / "a.pth", values)
    assert_refused(lambda: loaded(path), CheckpointError, "a.pth", f" {name} ")


@pytest.mark.parametrize("name", list(text_shapes(TINY)))
def test_missing_text_tensor_is_named(tmp_path: Path, name: str) -> None:
    values = text()
    del values[name]
    model = loaded(saved(tmp_path / "mkt.pth", mkt()))
    checkpoint = load_checkpoint(saved(tmp_path / "text.pth", values))
    assert_refused(lambda: add_text_tower(model, checkpoint), CheckpointError, "text.pth", f" {name} ")


def test_wrong_kinds_of_file(tmp_path: Path) -> None:
    model = loaded(saved(tmp_path / "mkt.pth", mkt()))

    def text_tower_is_refused(name: str, *facts: str) -> None:
        checkpoint = load_checkpoint(tmp_path / name)
        assert_refused(lambda: add_text_tower(model, checkpoint), CheckpointError, name, *facts)

    alone = saved(tmp_path / "text.pth", text())
    assert_refused(lambda: loaded(alone), CheckpointError, "text.pth", "`text_tower`")
    text_tower_is_refused("mkt.pth", "MKT")
    narrow = text() | {"text_projection": torch.zeros(64, 256)}
    saved(tmp_path / "narrow.pth", prefixed("module.", narrow))
    text_tower_is_refused("narrow.pth", "module.text_projection", "256", "512")
    resnet = {"visual.conv1.weight": torch.zeros(32, 3, 3, 3), "visual.attnpool.positional_embedding": torch.zeros(50, 64)}
    saved(tmp_path / "resnet.pth", resnet | text() | {"input_resolution": torch.tensor(224)})
    assert_refused(lambda: loaded(tmp_path / "resnet.pth"), CheckpointError, "resnet.pth", "visual.attnpool.c_proj.weight")
    assert load_checkpoint(tmp_path / "resnet.pth").has_text  # whose text tower can be used
    add_text_tower(model, load_checkpoint(tmp_path / "resnet.pth"))
    hf = {"visual.class_embedding": torch.zeros(4), "text.transformer.embeddings.word_embeddings.weight": torch.zeros(9, 4)}
    saved(tmp_path / "hf.pth", hf)
    text_tower_is_refused("hf.pth", "text.text_projection")
