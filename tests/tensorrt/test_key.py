"""The key of an engine, and which of its fields keep the engine from running elsewhere."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from msgspec.structs import replace

from sigrl_deploy.bundle.engine_records import EngineKey, EngineRecord, Ops, Profile, Range
from sigrl_deploy.config import Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.machine.gpu import Gpu

HERE = Gpu("NVIDIA L4", "8.9", "580.65.06", "13.0", 24 << 30)
LIBRARY = "tensorrt 10.13.2.6"
PROFILE = Profile(Range(1, 1, 32), Range(1, 81, 4096))
KEY = EngineKey("visual", "a" * 64, LIBRARY, Precision.BF16, Ops.FUSED, PROFILE, ("8.9",), HERE.name, HERE.driver)


def test_an_engine_fits_where_it_was_built() -> None:
    assert KEY.unfit("a" * 64, LIBRARY, HERE) == []


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (replace(KEY, onnx="b" * 64), r"built from another visual graph \(sha256 bbbbbbbbbbbb, now aaaaaaaaaaaa\)"),
        (replace(KEY, library="tensorrt 10.9.0.34"), r"built by tensorrt 10.9.0.34, and this is tensorrt 10.13.2.6"),
        (replace(KEY, library="tensorrt_rtx 10.13.2.6"), "built by tensorrt_rtx"),
        (replace(KEY, compute_capabilities=("9.0",)), "built for compute capability 9.0, and NVIDIA L4 has 8.9"),
        (replace(KEY, gpu="NVIDIA L40S"), "built on NVIDIA L40S, and this is NVIDIA L4"),
        (replace(KEY, driver="570.10"), "built with driver 570.10, and this is 580.65.06"),
    ],
)
def test_each_field_that_differs_is_named(key: EngineKey, reason: str) -> None:
    (found,) = key.unfit("a" * 64, LIBRARY, HERE)
    assert re.search(reason, found), found


def test_all_differences_are_told_at_once() -> None:
    assert len(replace(KEY, onnx="b" * 64, driver="1", library="tensorrt 11.0").unfit("a" * 64, LIBRARY, HERE)) == 3


def test_built_ahead_of_time_it_runs_on_every_gpu_of_its_capabilities() -> None:
    key = replace(KEY, gpu=None, driver=None, compute_capabilities=("8.0", "8.9"))
    assert key.unfit("a" * 64, LIBRARY, HERE) == []
    assert key.unfit("a" * 64, LIBRARY, dataclasses.replace(HERE, name="NVIDIA L40S", driver="1")) == []
    assert key.unfit("a" * 64, LIBRARY, dataclasses.replace(HERE, compute_capability="8.6"))


def test_hardware_compatible_engines_run_on_ampere_and_newer() -> None:
    key = replace(KEY, hardware_compatible=True)
    for capability, fits in (("8.0", True), ("9.0", True), ("12.0", True), ("7.5", False)):
        unfit = key.unfit("a" * 64, LIBRARY, dataclasses.replace(HERE, name="another", compute_capability=capability))
        assert (unfit == []) is fits


@pytest.mark.parametrize(
    ("library", "fits"),
    [
        ("tensorrt 10.14.0.1", True),
        ("tensorrt 10.2.0.1", False),
        ("tensorrt 11.0.0.0", False),
        ("tensorrt_rtx 10.14.0.1", False),
    ],
)
def test_version_compatible_engines_run_in_later_releases_of_a_major_version(library: str, fits: bool) -> None:
    key = replace(KEY, version_compatible=True)
    assert (key.unfit("a" * 64, library, HERE) == []) is fits


def test_every_field_is_part_of_the_file_s_name() -> None:
    others = {
        "onnx": "b" * 64, "library": "tensorrt 11", "precision": Precision.FP16, "ops": Ops.INLINED, "graph": "text",
        "profile": Profile(Range(1, 1, 8), PROFILE.labels), "compute_capabilities": ("9.0",), "gpu": "x", "driver": "y",
        "hardware_compatible": True, "version_compatible": True,
    }  # fmt: skip
    assert set(others) == set(KEY.__struct_fields__)
    names = {replace(KEY, **{name: value}).file_name for name, value in others.items()}
    assert len(names | {KEY.file_name}) == len(others) + 1


def test_a_record_comes_back_as_it_was_written() -> None:
    record = EngineRecord(KEY, KEY.file_name, "c" * 64, 1234, 5.5)
    assert EngineRecord.from_plain(json.loads(json.dumps(record.to_plain()))) == record
    for damage in ({"file": 3}, {"file": "../x"}, {"key": {}}, {"size": "x"}, {"extra": 1}, {"sha256": "c"}):
        with pytest.raises(ValueError, match=next(iter(damage))):
            EngineRecord.from_plain(record.to_plain() | damage)


@pytest.mark.parametrize("values", [(0, 1, 2), (2, 1, 3), (1, 3, 2), (1, 2)])
def test_ranges_are_ordered(values: tuple[int, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        Range.of("batch", values)
    assert (caught.value.argument, caught.value.value) == ("batch", " ".join(map(str, values)))
    assert 32 in Range.of("batch", (1, 1, 32))
    assert 33 not in Range.of("batch", (1, 1, 32))
