"""Checkpoints of every layout and format, damaged, through the loader up to the eager model."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from benchmarks.random_weights import Variant, sigrl_shapes, text_shapes, vision_shapes
from sigrl_deploy.checkpoints.building import add_text_tower, build_model
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.checkpoints.native import HEADER, TrainedRecord
from sigrl_deploy.config import (
    Arch,
    Contract,
    ModelConfig,
    TextConfig,
    VisionConfig,
)
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.pictures.preprocess import Preprocess
from tests.support.checkpoints import OpenAI, State, archive, clip_of, prefixed, state

from .mutate import damaged, number

_SMALL = Variant(layers=1, width=64, image_size=32, text_layers=1, text_width=64, vocabulary=20, context=10, embed=32)
_NUMBERS: list[Any] = [0, 1, -1, 2, 255, 256, 1 << 16, 1 << 31, 1 << 62, 1 << 64, 1 << 200, True, None, 0.5, "1", [], {}]


def examine(data: bytes) -> bool:
    """Whether a model could be loaded; anything but a CheckpointError of one line is a finding."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.safetensors" if data[8:9] == b"{" else "a.pth")
        path.write_bytes(data)
        try:
            checkpoint = load_checkpoint(path)
            model = build_model(checkpoint, model_config(checkpoint))
            if checkpoint.has_text:
                add_text_tower(model, checkpoint)
        except CheckpointError as error:
            if not str(error).isprintable() or len(str(error)) > 1000:
                raise AssertionError("an error of more than a line") from error
            return False
    return True


def mutate(data: bytes, others: list[bytes], rng: Random) -> bytes:
    """Damage half of the files as plain bytes, and the others within their structure, with checksums updated."""
    if rng.random() < 0.5:
        return damaged(data, others, rng)
    if data.startswith(b"PK"):
        return _members(data, others, rng)
    return _header(data, others, rng) if data[8:9] == b"{" else _pickle(data, rng)


def _members(data: bytes, others: list[bytes], rng: Random) -> bytes:
    """A zip file with members damaged, renamed, repeated, left out or compressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archived:
        members = [(info.filename, archived.read(info)) for info in archived.infolist()]
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(members))
        name, content = members[at]
        choice = rng.randrange(8)
        if choice == 0 and len(members) > 1:
            del members[at]
        elif choice == 1:
            members.append((rng.choice(members)[0], content))
        elif choice == 2:
            members[at] = (damaged(name.encode(), [b"a/data/0"], rng).decode("latin-1")[:1000], content)
        elif choice == 3:
            members[at] = (name, damaged(content, others, rng))
        else:
            place = next((i for i, member in enumerate(members) if member[0].endswith("data.pkl")), at)
            members[place] = (members[place][0], _pickle(members[place][1], rng))
    out = io.BytesIO()
    how = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name are intended
        with zipfile.ZipFile(out, "w", how) as archived:
            for name, content in members:
                archived.writestr(name.partition("\0")[0] or "a", content)
    return out.getvalue()


_OPCODES = b"()]}0NKMJX\x85\x86\x87\x88\x89QRbetsuaqhj\x8a\x8b\x81\x93\x94."


def _pickle(data: bytes, rng: Random) -> bytes:
    """Insert, remove or repeat instructions, or change their numbers."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(max(1, min(len(out), rng.choice([200, 2000, len(out)]))))
        choice = rng.randrange(5)
        if choice == 0:
            out[at:at] = bytes(rng.choices(_OPCODES, k=rng.choice([1, 2, 5])))
        elif choice == 1:
            del out[at : at + rng.choice([1, 2, 5])]
        elif choice == 2:
            out[at:at] = out[at : at + rng.choice([5, 50, 500])] * rng.choice([1, 10, 1000])
        else:
            size = rng.choice([1, 2, 4])
            out[at : at + size] = number(rng, size)
    return bytes(out)


def _header(data: bytes, others: list[bytes], rng: Random) -> bytes:
    """Change the header of a safetensors file, or our own header within it, and update its length."""
    (length,) = struct.unpack("<Q", data[:8])
    header, content = json.loads(data[8 : 8 + length]), data[8 + length :]
    own = header.get("__metadata__", {})
    values = json.loads(own[HEADER]) if own else {}
    for _ in range(rng.choice([1, 1, 2, 4])):
        _change(values if own and rng.random() < 0.6 else header, rng)
    if own and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"][HEADER] = json.dumps(values)
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = damaged(text, others, rng)
    return struct.pack("<Q", len(text)) + text + content


def _change(values: Any, rng: Random) -> None:
    """Replace one value somewhere in a tree of dicts and lists by another, or by an odd one, or remove it."""
    while True:
        keys = list(values) if isinstance(values, dict) else range(len(values))
        if not keys:
            return
        key = rng.choice(list(keys))
        if isinstance(values[key], (dict, list)) and rng.random() < 0.9:
            values = values[key]
            continue
        if rng.random() < 0.1:
            del values[key]
        else:
            values[key] = rng.choice(_NUMBERS)
        return


@cache
def corpus() -> dict[str, bytes]:
    """Whole files of every layout and format, by name."""
    shapes = vision_shapes(_SMALL)
    mkt, text, sigrl = state(shapes), state(text_shapes(_SMALL)), state(sigrl_shapes(_SMALL))
    openai = clip_of(mkt, text) | {"input_resolution": torch.tensor(32)}
    custom = clip_of(mkt, prefixed("text.", text)) | {"input_resolution": torch.tensor(32)}
    files = {
        "mkt.pth": _saved(mkt),
        "sigrl.pth": _saved({"epoch": 3, "state_dict": prefixed("module.", sigrl), "seen": {1, 2}}),
        "sigrl-old.pth": _saved(sigrl, _use_new_zipfile_serialization=False),
        "half-protocol-4.pth": _saved({name: value.half() for name, value in sigrl.items()}, pickle_protocol=4),
        "custom.pth": _saved(custom),
        "openai.safetensors": save({name: value.clone() for name, value in openai.items()}),
        "own.safetensors": _own(),
    }
    with tempfile.TemporaryDirectory() as folder:
        files["openai.pt"] = archive(Path(folder) / "a.pt", OpenAI(clip_of(mkt, text))).read_bytes()
    return files


def _saved(value: dict[str, Any] | State, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def _own() -> bytes:
    """What our training saves."""
    torch.manual_seed(0)
    vision, text = VisionConfig(32, 16, 64, 1, 1), TextConfig(64, 1, 1, 10, 20)
    config = ModelConfig(Arch.CLIP, 32, 4, vision, text)
    record = TrainedRecord(config, "a {label}", Preprocess.for_contract(Contract.CLIP, 32), ("cat", "dog"), {"seed": 1})
    tensors = {name: value.detach().contiguous() for name, value in SigRL(config).state_dict().items()}
    return save(tensors, {HEADER: record.to_json()})
