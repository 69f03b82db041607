"""Files that claim more than they hold, or take for ever to read: each is small, and must be refused in no time."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from sigrl_deploy.architectures import Contract
from sigrl_deploy.checkpoints.native import HEADER, TrainedRecord
from sigrl_deploy.config import Arch, ModelConfig, TextConfig
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.pictures.preprocess import Preprocess
from tests.support.checkpoints import openai, sigrl

Make = Callable[[Path], None]
TEXT = struct.Struct("<I")


def text(value: str) -> bytes:
    """Opcodes that push a text."""
    return b"X" + TEXT.pack(len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    """Opcodes that push a class or function."""
    return f"c{module}\n{attribute}\n".encode()


def storage(key: str = "0", count: int = 4) -> bytes:
    """Opcodes that push a storage."""
    return b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu") + b"J" + TEXT.pack(count) + b"tQ"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], stored: bytes) -> bytes:
    """Opcodes that push a tensor."""
    sides = [b"(" + b"".join(integer(value) for value in values) + b"t" for values in (shape, stride)]
    made = name("torch._utils", "_rebuild_tensor_v2") + b"(" + stored + b"K\x00" + sides[0] + sides[1] + b"\x89"
    return made + name("collections", "OrderedDict") + b")RtR"


def integer(value: int) -> bytes:
    encoded = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8b" + TEXT.pack(len(encoded)) + encoded


def entry(key: str, value: bytes) -> bytes:
    """A state dict of one entry."""
    return b"\x80\x02}" + text(key) + value + b"s."


def entries(items: Iterable[bytes]) -> bytes:
    """A dict of keys and values."""
    return b"\x80\x02}(" + b"".join(items) + b"u."


def called(module: str, function: str, arguments: bytes) -> bytes:
    return entry("conv1.weight", name(module, function) + b"(" + arguments + b"tR")


def doubled(start: bytes, times: int) -> bytes:
    """A tuple of twice a tuple of twice a tuple …: two to the power of `times` in a few bytes."""
    return start + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(times))


def modules(times: int) -> bytes:
    """A TorchScript module whose attributes a and b are one module, whose attributes …"""
    made = b"\x80\x02" + name("__torch__", "M") + b")\x81}b"
    for i in range(times):
        both = b"}(" + text("a") + b"h%c" % i + text("b") + b"h%c" % i + b"u"
        made += b"q%c0" % i + name("__torch__", "M") + b")\x81" + both + b"b"
    return made + b"."


def archive(pickled: bytes, script: bool = False, compress: bool = False, numbers: bytes = bytes(16)) -> bytes:
    content = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(content, "w", how, compresslevel=1) as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/version", b"3\n")
        file.writestr("a/data/0", numbers)
        if script:
            file.writestr("a/constants.pkl", b"\x80\x02).")
    return content.getvalue()


def legacy(pickled: bytes, keys: Any = None, numbers: bytes = struct.pack("<q4f", 4, 0, 0, 0, 0)) -> bytes:
    keys = keys or (["0"] if b"FloatStorage" in pickled else [])
    start = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(value, 2) for value in start) + pickled + pickle.dumps(keys, 2) + numbers


def both(label: str, pickled: bytes) -> Iterator[tuple[str, bytes]]:
    """In either format of torch.save's, and as TorchScript."""
    yield f"{label}.pth", archive(pickled)
    yield f"{label}-old.pth", legacy(pickled)
    yield f"{label}-script.pt", archive(pickled, script=True)


def pickles() -> Iterator[tuple[str, bytes]]:
    """What a pickle can ask for."""
    wide = (64, 3, 4096, 4096)
    yield from both("stride-0", entry("conv1.weight", tensor(wide, (0, 0, 0, 0), storage())))
    yield from both("beyond", entry("conv1.weight", tensor((64, 3, 16, 16), (768, 256, 16, 1), storage(count=49152))))
    yield from both("overflow", entry("conv1.weight", tensor((1 << 62, 1 << 62), (1, 1), storage())))
    yield from both("endless", entry("conv1.weight", tensor((1 << 400_000,) * 4, (1,) * 4, storage())))
    yield from both("negative", entry("conv1.weight", tensor((64, 3), (-3, 1), storage())))
    yield from both("dimensions", entry("conv1.weight", tensor((1,) * 50_000, (1,) * 50_000, storage())))
    yield from both("bytearray", called("builtins", "bytearray", integer(10**10)))
    yield from both("bytearray-2", called("__builtin__", "bytearray", integer(10**10)))
    large = name("builtins", "bytearray") + b"(" + integer(3 * 10**8) + b"tR"
    yield from both("set", called("builtins", "set", large))
    yield from both("counter", called("collections", "Counter", large))
    yield from both("tensor", called("torch", "Tensor", integer(10**5) + integer(10**5)))
    yield from both("untyped", called("torch.storage", "UntypedStorage", integer(10**11)))
    yield from both("meta", called("torch._utils", "_rebuild_meta_tensor_no_storage",
        name("torch", "float32") + b"(" + integer(64) * 4 + b"t(" + integer(1) * 4 + b"t\x89"))  # fmt: skip
    yield from both("sparse", called("torch._utils", "_rebuild_sparse_tensor", b"NN"))
    yield from both("quantised", called("torch._utils", "_rebuild_qtensor", b"NN"))
    yield from both("hash", b"\x80\x02}" + doubled(b")", 60) + b"K\x01s.")
    yield from both("pair", entry("conv1.weight", doubled(b")", 60)))
    yield from both("stack-name", b"\x80\x04" + doubled(b")", 60) + text("a") + b"\x93.")
    yield from both("memo", b"\x80\x02}r\xff\xff\xff\x7f.")
    yield from both("long-text", b"\x80\x02X\xff\xff\xff\x7fa.")
    yield from both("long-bytes", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"a.")
    yield from both("long-number", b"\x80\x02\x8b\xff\xff\xff\x7fa.")
    yield from both("nested", b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b".")
    yield from both("many", b"\x80\x02" + b"N0" * 3_000_000 + b"}.")
    yield from both("attributes", b"\x80\x02" + shared_attributes() + b".")
    yield from both("text-name", entry("c" * 5_000_000, tensor((1,), (1,), storage())))
    yield from both("colliding-keys", entries(integer(((1 << 61) - 1) * i) + b"N" for i in range(1, 60_000)))
    long = integer(1 << 56_000_000)
    yield from both("long-key", entries([long + b"q\x00N", *[b"h\x00N"] * 3_000]))
    same = text("c" * 3_900_000)
    yield from both("equal-keys", entries([same + b"N", same + b"q\x00N", *[b"h\x00N"] * 190_000]))
    named = storage(key="c" * 3_900_000)[:-1]  # without the instruction that makes a storage of it
    yield from both("equal-storages", b"\x80\x02" + named + b"Q0" + named + b"q\x000" + b"h\x00Q0" * 130_000 + b"}.")
    parts = storage()[:-2] + b"N" * 100_000 + b"tq\x000"
    yield from both("storage-parts", b"\x80\x02" + parts + b"h\x00Q0" * 45_000 + b"}.")
    yield "modules.pt", archive(modules(60), script=True)
    yield "itself.pt", archive(b"\x80\x02" + name("__torch__", "M") + b")\x81q\x00}" + text("a") + b"h\x00sb.", script=True)
    yield "negative-count.pth", archive(entry("conv1.weight", tensor((1,), (1,), storage(count=(1 << 32) - 4))))


def shared_attributes() -> bytes:
    """100,000 modules that share their 100,000 attributes."""
    attributes = b"}(" + b"".join(text(str(i)) + b"N" for i in range(50_000)) + b"uq\x01"
    return attributes + (name("__torch__", "M") + b")\x81h\x01b0") * 50_000


def containers() -> Iterator[tuple[str, bytes]]:
    """What a file can claim beside its pickle."""
    one = entry("conv1.weight", tensor((4,), (1,), storage()))
    bomb = b"\x80\x02" + b"N0" * (1 << 27) + b"}."
    for script in (False, True):
        ending = "-script.pt" if script else ".pth"
        yield f"bomb{ending}", archive(bomb, script, compress=True)
        yield (
            f"numbers{ending}",
            archive(
                entry("conv1.weight", tensor((1 << 27,), (1,), storage(count=1 << 27))),
                script,
                compress=True,
                numbers=bytes(1 << 29),
            ),
        )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a/data.pkl", one)
        for i in range(60_000):
            file.writestr(f"a/data/{i}", b"")
    yield "members.pth", content.getvalue()
    yield "directory.pth", archive(one)[:-10] + b"\xf0\xff\xff\x7f" + archive(one)[-6:]
    yield "claim.pth", larger_claim(archive(one))
    yield "count-old.pth", legacy(one, numbers=struct.pack("<q", 1 << 60))
    yield "negative-count-old.pth", legacy(one, numbers=struct.pack("<q", -5))
    keys = ()
    for _ in range(60):
        keys = (keys, keys)
    yield "keys-old.pth", legacy(one, keys=[keys])
    yield "tar.pth", b"storages" + bytes(92) + b"0000644\0" + bytes(400) + b"ustar\x0000" + bytes(10_000)
    names = {f"visual.transformer.resblocks.{i}.ln_1.weight": torch.ones(1) for i in range(8_000)}
    extra = {"visual.class_embedding": torch.ones(64), "visual.proj": torch.ones(64, 64), "input_resolution": torch.tensor(4),
             "visual.conv1.weight": torch.ones(64, 3, 4, 4), "visual.positional_embedding": torch.ones(2, 64)}  # fmt: skip
    yield "layers.safetensors", save(names | extra)
    yield "layers.pth", archive(
        b"\x80\x02}(" + b"".join(
            text(key) + (tensor((1,), (1,), storage()) if "resblocks" in key else b"N") for key in names
        ) + b"u."
    )  # fmt: skip
    yield "header.safetensors", struct.pack("<Q", 90_000_000) + b" " * 90_000_000
    yield "header-length.safetensors", struct.pack("<Q", 1 << 62) + b"{}"
    empty = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(120_000))
    yield "tensors.safetensors", struct.pack("<Q", len(empty) + 2) + b"{" + empty.encode() + b"}"
    deep = b"[" * 5_000_000
    yield "deep.safetensors", struct.pack("<Q", len(deep)) + deep


def larger_claim(content: bytes) -> bytes:
    """Its central directory says that data/0 has 4 GB less a few bytes."""
    start = content.rindex(b"PK\x01\x02")
    return content[: start + 20] + b"\xf0\xff\xff\xff\xf0\xff\xff\xff" + content[start + 28 :]


VISION = VisionConfig(32, 16, 64, 1, 1)
RECORD = TrainedRecord(
    ModelConfig(Arch.CLIP, 64, 4, VISION, TextConfig(64, 1, 1)), "a {label}", Preprocess.for_contract(Contract.CLIP, 32)
)
SIZES: dict[str, dict[str, Any]] = {
    "wide": {"vision": {"width": 1536, "heads": 24}, "text": {"width": 1536, "heads": 24, "vocab_size": 1 << 20}},
    "widest": {"vision": {"width": 16384, "layers": 256, "heads": 1}, "text": {"width": 16384, "layers": 256, "heads": 1}},
    "true-layers": {"vision": {"layers": True}},
    "true-heads": {"text": {"heads": True}},
    "true-topk": {"topk": True},
    "true-embedding": {"embed_dim": True},
    "number-for-true": {"vision": {"quick_gelu": 1}},
    "nan": {"vision": {"mlp_ratio": float("nan")}},
    "infinite": {"vision": {"mlp_ratio": float("inf")}},
    "true-ratio": {"vision": {"mlp_ratio": True}},
    "float-width": {"vision": {"width": 64.0}},
    "many-layers": {"text": {"layers": 10**9}},
}


def headers() -> Iterator[tuple[str, bytes]]:
    """What a header of ours can claim."""
    for label, changes in SIZES.items():
        values = json.loads(RECORD.to_json())
        for key, value in changes.items():
            values["config"][key] = values["config"][key] | value if isinstance(value, dict) else value
        yield f"{label}.safetensors", save({"a": torch.ones(1)}, {HEADER: json.dumps(values)})


def views(folder: Path) -> Iterator[Path]:
    """torch's own files, of tensors that share or repeat numbers."""
    wide = torch.zeros(1).as_strided((64, 3, 4096, 4096), (0, 0, 0, 0))
    common = torch.zeros(64 * 64)
    blocks = {
        f"visual.transformer.resblocks.{i}.{key}": common[: value.numel()].reshape(value.shape)
        for i in range(200)
        for key, value in (
            (name.split("0.", 1)[1], value) for name, value in openai().items() if "visual.transformer.resblocks.0." in name
        )
        if value.numel() <= common.numel()
    }
    values: dict[str, Any] = {
        "expanded": openai() | {"visual.conv1.weight": wide},
        "expanded-blocks": {key: torch.zeros(1).expand(value.shape) for key, value in sigrl().items()},
        "shared": openai() | blocks,
        "complex": openai() | {"visual.ln_pre.bias": torch.zeros(64, dtype=torch.complex64)},
        "whole-numbers": openai() | {"visual.ln_pre.bias": torch.zeros(64, dtype=torch.int32)},
        "booleans": openai() | {"visual.ln_pre.bias": torch.zeros(64, dtype=torch.bool)},
        "sparse-own": openai() | {"visual.proj": torch.zeros(64, 512).to_sparse()},
        "quantised-own": openai() | {"visual.proj": torch.quantize_per_tensor(torch.zeros(64, 512), 1.0, 0, torch.qint8)},
        "meta-own": openai() | {"visual.proj": torch.zeros(64, 512, device="meta")},
    }
    for label, value in values.items():
        for old in (False, True):
            path = folder / f"{label}{'-old' if old else ''}.pth"
            try:
                torch.save(value, path, _use_new_zipfile_serialization=not old)
            except (NotImplementedError, RuntimeError):  # torch's old format cannot hold every kind
                continue
            yield path


def written(folder: Path, files: Iterator[tuple[str, bytes]]) -> Iterator[Path]:
    for label, content in files:
        (folder / label).write_bytes(content)
        yield folder / label


GROUPS: dict[str, Callable[[Path], Iterator[Path]]] = {
    "pickles": lambda folder: written(folder, pickles()),
    "containers": lambda folder: written(folder, containers()),
    "headers": lambda folder: written(folder, headers()),
    "views": views,
}
