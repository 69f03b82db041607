"""Choosing among a kernel's launches: what is measured, kept, shared and rebuilt; and that every candidate is right."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sigrl_deploy.config import FUSED, Arch, GraphConfig
from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels import cases, gmc, match, svfr
from sigrl_deploy.kernels.blocks import Launch
from sigrl_deploy.kernels.tuning import FILE, Case, compile_ahead, tune

KEY = "a GPU, sm_90, driver 1, Triton 3, kernels abc"
LAUNCHES = tuple(Launch({"DIM": 512, "BLOCK_O": side}, warps=8, stages=2) for side in (16, 32, 64))


class Clock:
    """A timer by which a launch takes as many milliseconds as `times` says of its BLOCK_O."""

    def __init__(self, times: dict[int, float]) -> None:
        self.times = times
        self.runs: list[int] = []

    def case(self, op: str = "svfr.decouple", size: str = "P = 196") -> Case:
        return Case(op, size, LAUNCHES, lambda launch: self.runs.append(launch.constants["BLOCK_O"]))

    def __call__(self, run: Callable[[], object]) -> float:
        run()
        return self.times[self.runs[-1]]


def test_the_fastest_is_taken_and_remembered(tmp_path: Path) -> None:
    clock = Clock({16: 3.0, 32: 1.0, 64: 2.0})
    first = tune([clock.case()], tmp_path, KEY, clock)
    assert first.launches == {"svfr.decouple": LAUNCHES[1]}
    assert (first.measured, clock.runs) == (1, [16, 32, 64])
    again = tune([clock.case()], tmp_path, KEY, clock)
    assert (again.launches, again.measured) == (first.launches, 0)
    assert clock.runs == [16, 32, 64]


@pytest.mark.parametrize("other", ["size", "key", "launches"])
def test_results_hold_for_what_they_were_measured_of(tmp_path: Path, other: str) -> None:
    """Another size, another GPU, driver or source, and a launch that is no candidate any more."""
    clock = Clock({16: 3.0, 32: 1.0, 64: 2.0})
    tune([clock.case()], tmp_path, KEY, clock)
    case = clock.case(size="P = 49" if other == "size" else "P = 196")
    if other == "launches":
        case = replace(case, candidates=LAUNCHES[::2])
    assert tune([case], tmp_path, KEY + "d" * (other == "key"), clock).measured == 1


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clock = Clock({16: 3.0, 32: 1.0, 64: 2.0})
    assert [tune([clock.case()], None, KEY, clock).measured for _ in range(2)] == [1, 1]
    assert list(tmp_path.iterdir()) == []


def test_all_that_will_be_measured_is_compiled_before(tmp_path: Path) -> None:
    """And nothing that an earlier run has measured."""
    clock = Clock({16: 3.0, 32: 1.0, 64: 2.0})
    tune([clock.case(size="P = 49")], tmp_path, KEY, clock)
    clock.runs.clear()
    compiled: list[int] = []

    def ahead(runs: list[Callable[[], object]]) -> None:
        for run in runs:
            run()
        compiled.extend(clock.runs)

    tune(
        [clock.case(op, size) for op in ("svfr.decouple", "match") for size in ("P = 49", "P = 196")],
        tmp_path,
        KEY,
        clock,
        ahead,
    )
    new = 3 * [16, 32, 64]
    assert (compiled, clock.runs) == (new, new + new)


def test_compiling_goes_on_beside_what_compiles_and_past_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs that wait for each other; between them one that fails, loudly."""
    both, done = threading.Barrier(2, timeout=30), []

    def fail() -> None:
        print("all of the PTX")
        raise RuntimeError("out of resource: shared memory")

    compile_ahead([both.wait, fail, both.wait, lambda: done.append("last")])
    assert not both.broken
    assert done == ["last"]
    assert capsys.readouterr().out == ""


def test_sizes_that_share_a_choice() -> None:
    """Pictures × labels with their padding, by powers of four; what is more than a GPU has room for at once is one class."""
    classes = {work: cases.Shape(1, work, work).size_class for work in (1, 2, 64, 65, 128, 256, 1024, 2048, 8192)}
    assert classes == {1: 1, 2: 4, 64: 64, 65: 256, 128: 256, 256: 256, 1024: 1024, 2048: 4096, 8192: 4096}
    assert cases.Shape(8, 128, 81).size_class == cases.Shape(1, 1024, 1006).size_class
    assert cases.Shape(64, 1024, 1006).cut == cases.Shape(4, 1024, 1006)
    assert cases.Shape(2, 8192, 7586).cut == cases.Shape(1, 8192, 7586)


def test_a_candidate_that_does_not_run_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock({16: 3.0, 64: 2.0})  # a KeyError for 32
    noisy = clock.case()
    case = Case(noisy.op, noisy.size, noisy.candidates, lambda launch: (print("all of the PTX"), noisy.run(launch)))
    assert tune([case], tmp_path, KEY, clock).launches[case.op] is LAUNCHES[2]
    assert capsys.readouterr().out == ""


def test_where_no_candidate_runs_the_user_is_told_what_to_do(tmp_path: Path) -> None:
    def refuse(_: object) -> float:
        raise RuntimeError("out of resource: shared memory\nand more")

    with pytest.raises(UsageError, match=r"none of 3 ways .* \(out of resource: shared memory\); .*`unfused`"):
        tune([Clock({}).case()], tmp_path, KEY, refuse)
    assert list(tmp_path.iterdir()) == []


DAMAGED = ["", "{", "[]", "null", '{"format": 2, "results": {}}', '{"format": 1, "results": []}', "[" * 100_000, "\x00"]


@pytest.mark.parametrize("content", [*DAMAGED, json.dumps({"format": 1, "results": {KEY: {"x": {"launch": 3}}}})])
def test_a_damaged_or_foreign_file_is_reported_and_rebuilt(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(content)
    clock = Clock({16: 3.0, 32: 1.0, 64: 2.0})
    with caplog.at_level(logging.WARNING):
        assert tune([clock.case()], tmp_path, KEY, clock).measured == 1
    assert f"{tmp_path / FILE}: " in caplog.text
    assert "measured again" in caplog.text
    assert tune([clock.case()], tmp_path, KEY, clock).measured == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o500)
    clock = Clock({16: 3.0, 32: 1.0, 64: 2.0})
    assert tune([clock.case()], tmp_path, KEY, clock).launches
    assert "cannot be written" in caplog.text


def test_a_file_in_the_folder_s_place_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kernels").write_text("a file")
    clock = Clock({16: 3.0, 32: 1.0, 64: 2.0})
    assert tune([clock.case()], tmp_path / "kernels", KEY, clock).launches
    assert "cannot be written" in caplog.text


def test_what_several_write_at_once_is_all_kept(tmp_path: Path) -> None:
    def add(number: int) -> int:
        clock = Clock({16: 3.0, 32: 1.0, 64: 2.0})
        return tune([clock.case(size=f"P = {number}")], tmp_path, KEY, clock).measured

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(add, range(24))) == [1] * 24
    assert [add(number) for number in range(24)] == [0] * 24
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, f"{FILE}.lock"]


def test_compiled_kernels_go_beside_unless_the_user_said_where(tmp_path: Path) -> None:
    """In a process of its own, since Triton's setting is one of the process."""
    code = (
        "import sys, pathlib, triton; from sigrl_deploy.kernels.tuning import keep_compiled\n"
        "for folder in sys.argv[1:]:\n    keep_compiled(pathlib.Path(folder) if folder else None)\n"
        "    print(triton.knobs.cache.dir)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR"}
    arguments = [sys.executable, "-c", code, str(tmp_path / "a"), "", str(tmp_path / "b")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=True)
    first, discarded, last = done.stdout.split()
    assert [first, last] == [str(tmp_path / "a" / "triton"), str(tmp_path / "b" / "triton")]
    assert not Path(discarded).exists()
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "own")
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=True)
    assert set(done.stdout.split()) == {str(tmp_path / "own")}


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS = (49, 196, 577)  # one for each size of tile that has candidates


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Marks what runs there where there is one."""
    return pytest.mark.gpu(test) if DEVICE == "cuda" else test


@on_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", TOKENS)
def test_every_candidate_computes_the_same(tokens: int, dtype: torch.dtype) -> None:
    """As the first, which test_kernels.py holds against float64; sums may be in another order."""
    torch.manual_seed(0)
    dim, labels = 80, 3
    x, t, w = (torch.randn(*shape, device=DEVICE).to(dtype) for shape in ((1, tokens, dim), (labels, dim), (dim, dim)))
    w = w / dim**0.5
    results = {
        "decouple": [svfr.decouple(x, t, w, how=how) for how in svfr.candidates(tokens, dim, dtype, accumulators=1)],
        "reconstruct": [
            svfr.reconstruct(x, t[None], w, how=how) for how in svfr.candidates(tokens, dim, dtype, accumulators=2)
        ],
        "match": [match.match(x, x[:, 0], t, 16, how=how)[0] for how in match.candidates(tokens, dim, dtype)],
    }
    tolerance = 8 * torch.finfo(dtype).eps
    for name, (first, *others) in results.items():
        for other in others:
            assert (other - first).norm() <= tolerance * first.norm(), name


@on_gpu
@pytest.mark.filterwarnings("ignore")
def test_every_kernel_of_a_model_is_tuned() -> None:
    """All that tuning runs, on less; what is not fused or not in the model is left out."""
    graph = (GraphConfig(48, 2, 32), GraphConfig(64, 1, 48))
    sizes = cases.Sizes(Arch.SIGRL, 49, 48, 4, graph)

    def ops(sizes: cases.Sizes, fused: tuple[str, ...] = FUSED) -> set[str]:
        def timer(run: Callable[[], object]) -> float:
            run()
            return 1.0

        found = cases.cases(sizes, torch.float16, torch.device(DEVICE), fused, cases.Shape(1, 3, 2))
        return set(tune(found, None, KEY, timer).launches)

    assert ops(sizes) == {"svfr.decouple", "svfr.between", "svfr.reconstruct", "match", "gmc 32", "gmc 48"}
    assert ops(sizes, ("match",)) == {"match"}
    assert ops(replace(sizes, width=24), ("tower",)) == {"tower"}
    assert ops(cases.Sizes(Arch.CLIP, 49, 48, 4)) == set()


@on_gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("heads", "width"), [(4, 32), (1, 512)])
def test_every_candidate_of_gmc_computes_the_same(heads: int, width: int) -> None:
    torch.manual_seed(0)
    nodes, attention = torch.randn(37, heads, width, device=DEVICE), torch.randn(width, device=DEVICE) / width**0.5
    first, *others = (gmc.graph_attention(nodes, attention, how) for how in gmc.candidates(width))
    assert others
    assert all((other - first).norm() <= 1e-6 * first.norm() for other in others)
