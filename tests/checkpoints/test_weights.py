"""Files of every kind, whole, damaged and hostile: tensors are read, and no code in them runs."""

import collections
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.random_weights import tensors
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.pickles import MAX_TENSORS
from sigrl_deploy.checkpoints.weights import read_weights
from sigrl_deploy.errors import CheckpointError
from tests.support.checkpoints import OpenAI, archive, clip_of, loaded, mkt, openai, saved, scores, sigrl, text, token_ids
from tests.support.refusals import assert_refused


def test_torchscript_archive_of_openai(tmp_path: Path) -> None:
    values = clip_of(mkt(), text())
    path = archive(tmp_path / "ViT.pt", OpenAI(values))
    half = {name: value.half() for name, value in openai().items()}
    plain = loaded(saved(tmp_path / "plain.pth", half))
    model = loaded(path)
    assert model.config == plain.config
    assert model.visual.proj.dtype == torch.float32
    assert torch.equal(scores(model), scores(plain))
    assert torch.equal(model.encode_text(token_ids()), plain.encode_text(token_ids()))


def test_torchscript_tensors_are_those_of_jit_load(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", OpenAI(clip_of(mkt(), text())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(path).state_dict()
    found = load_checkpoint(path).tensors
    for name, value in expected.items():
        assert torch.equal(found[name].read(), value), name


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.attn_mask = torch.ones(2, 2)
        self.empty = torch.nn.Parameter(torch.ones(0))
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.attn_mask[self.sizes[0]]


def test_mask_that_is_a_plain_attribute_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Masked()).save(str(path))
        expected = torch.jit.load(path).state_dict()
    assert read_weights(path).keys() == expected.keys() == {"linear.weight", "linear.bias", "empty"}


class RunsCode(torch.nn.Module):
    """TorchScript runs `__setstate__` when it loads a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        print("code from the archive")
        self.weight = state[0]
        self.training = state[1]


def test_torchscript_code_is_not_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(RunsCode()).save(str(path))
        torch.jit.load(path)
    assert "code from the archive" in capfd.readouterr().out
    assert_refused(lambda: load_checkpoint(path), CheckpointError, "a.pt")
    assert "code from the archive" not in capfd.readouterr().out


def test_archive_of_another_clip_is_not_taken_for_openais(tmp_path: Path) -> None:
    module = OpenAI(clip_of(mkt(), text()))
    del module.input_resolution
    path = archive(tmp_path / "a.pt", module)
    assert_refused(lambda: loaded(path), CheckpointError, "a.pt", "`clip_config`")


class WritesFile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "beside", "old format", "raw pickle", "archive", "safetensors"])
def test_malicious_pickle_is_refused(tmp_path: Path, wrap: str) -> None:
    target, path = tmp_path / "written", tmp_path / "a.pt"
    evil = WritesFile(target)
    if wrap == "raw pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    elif wrap == "archive":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/constants.pkl", b"")
            file.writestr("a/data.pkl", pickle.dumps(evil, protocol=2))
    elif wrap == "safetensors":
        path = tmp_path / "a.safetensors"
        torch.save(evil, path)
    else:
        value = {"bare": evil, "old format": evil}.get(wrap, {"state_dict": evil, "w": torch.ones(2)})
        if wrap == "beside":
            value = sigrl() | {"hook": evil}
        torch.save(value, path, _use_new_zipfile_serialization=wrap != "old format")
    assert_refused(lambda: load_checkpoint(path), CheckpointError, path.name)
    assert not target.exists()


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pth", sigrl()).read_bytes()
    save_file(sigrl(), tmp_path / "whole.safetensors")
    script = archive(tmp_path / "whole.pt", OpenAI(clip_of(mkt(), text()))).read_bytes()
    flipped = bytearray(script)
    flipped[
        script.index(torch.from_numpy(tensors({"class_embedding": (64,)})["class_embedding"]).half().numpy().tobytes())
    ] ^= 1
    contents = {
        "cut.pth": whole[: len(whole) // 2],
        "cut.pt": script[: len(script) // 2],
        "flipped.pt": bytes(flipped),
        "cut.safetensors": (tmp_path / "whole.safetensors").read_bytes()[:1000],
        "empty.pth": b"",
        "empty.safetensors": b"",
        "text.pth": b"junk file\n",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\n",
        "text.safetensors": b"hello",
        "page.pt": b"<!DOCTYPE html>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.pth").mkdir()
    for name, value in {
        "tensor.pth": torch.ones(2),
        "list.pth": [torch.ones(2)],
        "number.pth": 3,
        "none.pth": {},
        "numbers.pth": {1: torch.ones(2)},
        "other.pth": {"layer4.0.conv1.weight": torch.ones(2)},
    }.items():
        saved(tmp_path / name, value)
    others = ["folder.pth", "missing.pth", "tensor.pth", "list.pth", "number.pth", "none.pth", "numbers.pth", "other.pth"]
    for name in [*contents, *others]:
        # This reads values too: a changed number changes a checksum.
        assert_refused(lambda path=tmp_path / name: loaded(path), CheckpointError, name)


@pytest.mark.parametrize("old", [False, True])
def test_tensors_that_share_memory_are_read(tmp_path: Path, old: bool) -> None:
    """Views of one flat buffer, as some trainers save them, tied weights, and a transposed one."""
    values = sigrl()
    kept = {name: value for name, value in values.items() if name != "projection_dist"}
    flat = torch.cat([value.flatten() for value in kept.values()])
    parts = flat.split([value.numel() for value in kept.values()])
    views = {name: part.view(value.shape) for (name, value), part in zip(kept.items(), parts, strict=True)}
    views["projection_dist"] = values["projection_dist"].T.contiguous().T
    views["GATv2_1.layer1.linear_r.weight"] = views["GATv2_1.layer1.linear_l.weight"]
    torch.save(views, tmp_path / "views.pth", _use_new_zipfile_serialization=not old)
    assert torch.equal(scores(loaded(tmp_path / "views.pth")), scores(loaded(saved(tmp_path / "plain.pth", values))))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle(tmp_path: Path, protocol: int) -> None:
    torch.save(sigrl(), tmp_path / "a.pth", pickle_protocol=protocol)
    assert read_weights(tmp_path / "a.pth").keys() == sigrl().keys()


def test_what_lies_beside_the_weights_is_left_alone(tmp_path: Path) -> None:
    """Other values that a training run saves, of kinds that torch reads too."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    beside = {
        "epoch": 3, "name": "run", "optimizer": optimizer.state_dict(), "scaler": {}, "device": torch.device("cpu"),
        "dtype": torch.float16, "shape": torch.Size([1, 2]), "rng": torch.get_rng_state(), "seen": {1, 2}, "blob": b"abc",
        "counts": collections.Counter(a=2), "z": 1j, "sparse": torch.ones(2, 2).to_sparse(), "big": 1 << 80, "huge": 1 << 2000,
        "by number": {1 << 80: 1, 1 << 2000: 2, "c" * 5000: 3},
    }  # fmt: skip
    path = saved(tmp_path / "run.pt", {"state_dict": sigrl(), **beside})
    assert torch.equal(scores(loaded(path)), scores(loaded(saved(tmp_path / "plain.pth", sigrl()))))


@pytest.mark.parametrize("old", [False, True])
def test_tensors_that_cannot_be_used_cost_only_themselves(tmp_path: Path, old: bool) -> None:
    """Torch's old format writes one storage after another, so that unused ones have to be skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated
        quantised = {
            dtype: torch.quantize_per_tensor(torch.ones(5), 0.1, 0, dtype)
            for dtype in (torch.qint8, torch.quint8, torch.qint32)
        } | {
            dtype: torch.quantize_per_channel(torch.ones(3, 5), torch.ones(3), torch.zeros(3), 0, dtype)
            for dtype in (torch.quint4x2, torch.quint2x4)
        }
    kinds = (torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.uint16)
    others = {str(dtype): torch.ones(3).to(dtype) for dtype in kinds} | {str(dtype): q for dtype, q in quantised.items()}
    others["mask"] = torch.zeros(1, 1).expand(5000, 50_000)
    values = [*sigrl().items()]
    path = tmp_path / "a.pth"
    for i, (name, value) in enumerate(others.items()):
        values.insert(2 * i + 1, (name, value))
    torch.save(dict(values), path, _use_new_zipfile_serialization=not old)
    if not old:  # which torch itself cannot read where one is of float8
        assert torch.load(path, weights_only=True).keys() == dict(values).keys()
    found = read_weights(path)
    for name, value in sigrl().items():
        assert torch.equal(found[name].read(), value), name
    for name in others:
        assert not found[name].is_float
        assert_refused(found[name].read, CheckpointError, "a.pth", f" {name} ")
    assert torch.equal(scores(loaded(path)), scores(loaded(saved(tmp_path / "plain.pth", sigrl()))))


def test_an_expanded_tensor_that_is_used_says_how_to_save_it(tmp_path: Path) -> None:
    values = sigrl() | {"ln_pre.bias": torch.zeros(1).expand(64)}
    path = saved(tmp_path / "a.pth", values)
    assert_refused(lambda: loaded(path), CheckpointError, "a.pth", "ln_pre.bias", "tensor.clone()")


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pth", sigrl())
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(scores(loaded(path)), scores(loaded(saved(tmp_path / "plain.pth", sigrl()))))


@pytest.mark.parametrize("old", [False, True])
def test_as_many_tensors_as_are_allowed(tmp_path: Path, old: bool) -> None:
    values = {f"visual.transformer.{i}": torch.nn.Parameter(torch.full((1,), float(i))) for i in range(MAX_TENSORS)}
    torch.save(values, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    found = read_weights(tmp_path / "a.pth")
    assert found.keys() == values.keys()
    name = f"visual.transformer.{MAX_TENSORS - 1}"
    assert found[name].read().item() == MAX_TENSORS - 1


def test_module_saved_whole_is_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", torch.nn.Linear(2, 2))
    assert_refused(lambda: load_checkpoint(path), CheckpointError, "a.pth", "torch.nn.modules.linear.Linear", "state_dict")
