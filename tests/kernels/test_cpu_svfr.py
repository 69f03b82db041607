"""SVFR's native kernel for CPUs against float64: every instruction set that this CPU has, and by emulation all the others."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.config import Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels.cpu.library import ON_REQUEST, VARIABLE, InstructionSet, Library, find, installed_library
from sigrl_deploy.kernels.cpu.svfr import CpuSvfr, Products
from tests.support.native_builds import (
    build_arm_fuzz,
    build_fuzz,
    build_optimised_arm_fuzz,
    build_race_check,
    require_arm_tools,
    require_compiler,
    require_tools,
    run_on_arm,
)
from tests.support.sharing import Shared

Inputs = tuple[FloatArray, FloatArray, FloatArray]
WEAK, STRONG = 1.0, 6.0  # weights with energies of which exp does not overflow, and of which it could (identity 5)
# D, P, C: also more labels than channels, which changes the order of products between the stages, and more of either than are
# multiplied at once.
SHAPES = [(512, 49, 7), (100, 13, 2), (64, 17, 1), (5, 3, 30), (130, 33, 81), (520, 3, 131), (60, 5, 530)]
# By the largest weight in 8 bits, the error of Y relative to how far its weights are from uniform: tanh in steps of 1/127 and
# weights in as many, or half as many, give 0.4 and 0.8 % with 512 channels, and the fewer channels the more.
INT8_ERROR = {127: 0.02, 63: 0.03}


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        library = installed_library()
    except OSError as error:
        if shutil.which("g++") and platform.machine() in ("x86_64", "aarch64"):
            pytest.fail(f"there is a compiler, and yet {error}")
        pytest.skip(str(error))
    if not library.instruction_sets:
        pytest.skip("this CPU has no instructions for it")
    return library


def sets() -> list[InstructionSet]:
    """Those that users get here; one that only who asks for it gets is tested where the environment asks."""
    try:
        here = installed_library().instruction_sets
        return [each for each in here if each not in ON_REQUEST or each.value == os.environ.get(VARIABLE)]
    except OSError:
        return []


def weights_of(dim: int, size: float) -> dict[str, FloatArray]:
    """Uniform as PyTorch draws them, and larger: rows of W have norms |W|₁ of about size √dim / 2."""
    rng = np.random.default_rng(dim)
    bound = size / np.sqrt(dim)
    return {name: rng.uniform(-bound, bound, (dim, dim)).astype(np.float32) for name in ("decouple", "fuse", "reconstruct")}


def inputs_of(dim: int, patches: int, labels: int, batch: int = 2) -> Inputs:
    rng = np.random.default_rng(labels)
    shapes = ((batch, patches, dim), (labels, dim), (labels, dim))
    x, t, g = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, t / 2, g / 2


def in_float64(weights: dict[str, FloatArray], inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Y, and Y less what uniform weights would give, by the formulas of docs/method.md."""
    w = {name: weight.astype(np.float64) for name, weight in weights.items()}
    x, t, g = (array.astype(np.float64) for array in inputs)

    def attention(weight: np.ndarray, patches: np.ndarray, label: np.ndarray) -> np.ndarray:
        energy = np.tanh(patches * label) @ weight
        exponential = np.exp(energy - energy.max(0))
        return exponential / exponential.sum(0)

    local = []
    for patches in x:
        s = np.stack([(attention(w["decouple"], patches, label) * patches).sum(0) for label in t])
        r = np.maximum(s.T @ t, 0)
        norm = np.linalg.norm(r, axis=1, keepdims=True)
        v = s @ (r / np.where(norm > 0, norm, 1)) @ w["fuse"] + g
        local.append(patches * sum(attention(w["reconstruct"], patches, label) for label in v))
    y = np.stack(local)
    return y, y - x * (len(t) / x.shape[1])


def opened(
    library: Library, chosen: InstructionSet, weights: dict[str, FloatArray], precision: Precision, threads: int = 2
) -> CpuSvfr:
    return CpuSvfr(weights, library, chosen, Products(precision), threads)


@pytest.mark.parametrize("chosen", sets())
@pytest.mark.parametrize("size", [WEAK, STRONG])
@pytest.mark.parametrize(("dim", "patches", "labels"), SHAPES)
def test_it_computes_svfr(library: Library, chosen: InstructionSet, size: float, dim: int, patches: int, labels: int) -> None:
    weights, inputs = weights_of(dim, size), inputs_of(dim, patches, labels)
    exact, moved = in_float64(weights, inputs)
    errors = {}
    for precision in (Precision.FP32, Precision.BF16, Precision.INT8):
        got = opened(library, chosen, weights, precision)(*inputs)
        errors[precision] = np.linalg.norm(got - exact) / np.linalg.norm(moved)
    larger = size / WEAK
    assert errors[Precision.FP32] < 2e-6 * larger  # sums of some hundred terms, each with an error of 6e-8
    assert errors[Precision.BF16] < 0.01 * larger  # 8 bits
    assert 1e-5 < errors[Precision.INT8] < INT8_ERROR[library.largest_weight(chosen)] * larger


@pytest.mark.parametrize("chosen", sets())
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_neither_the_batch_nor_the_threads_change_a_result(
    library: Library, chosen: InstructionSet, precision: Precision
) -> None:
    weights, (x, t, g) = weights_of(70, WEAK), inputs_of(70, 11, 40, batch=3)
    x[1] *= 100  # another picture's range
    alone, shared = (opened(library, chosen, weights, precision, threads) for threads in (1, 3))
    together = shared(x, t, g)
    assert np.array_equal(together, alone(x, t, g))
    for i in range(len(x)):
        assert np.array_equal(together[i : i + 1], alone(x[i : i + 1], t, g))


@pytest.mark.parametrize("chosen", sets())
def test_several_threads_may_share_it(library: Library, chosen: InstructionSet) -> None:
    weights = weights_of(96, WEAK)
    svfr = opened(library, chosen, weights, Precision.INT8, threads=3)
    cases = [inputs_of(96, patches, labels) for patches, labels in ((7, 3), (40, 20), (1, 1), (19, 64))]
    expected = [svfr(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: svfr(*cases[i % 4]), range(40)))
    assert all(np.array_equal(y, expected[i % 4]) for i, y in enumerate(found))


@pytest.mark.parametrize("chosen", sets())
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_patches_that_are_not_finite_show_in_the_result(
    library: Library, chosen: InstructionSet, precision: Precision, value: float
) -> None:
    x, t, g = inputs_of(64, 9, 5)
    x[1, 4, 20] = value
    y = opened(library, chosen, weights_of(64, WEAK), precision)(x, t, g)
    assert np.isfinite(y[0]).all()
    assert not np.isfinite(y[1, 4, 20])


@pytest.mark.parametrize("chosen", sets())
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.INT8])
@pytest.mark.parametrize("where", ["decouple", "fuse", "reconstruct", "x", "t", "g"])
def test_what_is_no_number_gives_none(library: Library, chosen: InstructionSet, precision: Precision, where: str) -> None:
    """Eight bits, and the instructions that take a maximum, would make a number of it."""
    weights, inputs = weights_of(70, WEAK), inputs_of(70, 9, 5)
    arrays = weights | dict(zip("xtg", inputs, strict=True))
    arrays[where].reshape(-1, 70)[2, 3] = np.nan
    exact, _ = in_float64(weights, inputs)
    got = opened(library, chosen, weights, precision)(*inputs)
    assert np.isnan(exact).any()
    assert not np.isfinite(got[np.isnan(exact)]).any()


def test_a_forked_process_may_use_what_its_parent_opened(library: Library) -> None:
    """Whatever the parent's threads were doing; what the child lets go of is not its own."""
    svfr, inputs = opened(library, sets()[-1], weights_of(96, WEAK), Precision.INT8, threads=3), inputs_of(96, 30, 20)
    expected, busy = svfr(*inputs), threading.Event()

    def keep_busy() -> None:
        while not busy.is_set():
            svfr(*inputs)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(keep_busy)
        children = []
        for _ in range(12):
            if (child := os.fork()) == 0:
                signal.alarm(60)  # ends a child that hangs
                same = np.array_equal(svfr(*inputs), expected)
                del svfr
                os._exit(0 if same else 1)
            children.append(child)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        busy.set()
    assert statuses == [0] * len(children)


def test_a_library_of_another_version_is_not_called(tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text("int sigrl_interface(void) { return 0; }")
    require_tools()
    subprocess.run(["gcc", "-shared", "-fPIC", "other.c", "-o", "other.so"], cwd=tmp_path, check=True)
    with pytest.raises(OSError, match="another version"):
        Library(str(tmp_path / "other.so"))


def test_weights_of_seven_bits_are_kept_as_they_are(library: Library) -> None:
    """A bundle's int8 weights, whole steps up to 63, multiplied as they are by every instruction set."""
    steps = np.random.default_rng(0).integers(-63, 64, (64, 64)).astype(np.float32)
    steps[0] = 63
    weights = {"decouple": steps / 400, "fuse": np.eye(64, dtype=np.float32), "reconstruct": steps / 300}
    inputs = inputs_of(64, 30, 6)
    exact, moved = in_float64(weights, inputs)
    for chosen in sets():
        got = CpuSvfr(weights, library, chosen, Products(Precision.INT8, 63), 1)(*inputs)
        assert np.linalg.norm(got - exact) / np.linalg.norm(moved) < 0.02  # tanh alone is rounded


def test_shapes_that_do_not_fit_are_refused(library: Library) -> None:
    svfr = opened(library, sets()[0], weights_of(8, WEAK), Precision.FP32)
    x, t, g = inputs_of(8, 3, 2)
    for wrong in ((x[..., :7], t, g), (x, t[:1], g), (x, t, g[:, :7])):
        with pytest.raises(ValueError, match="shapes"):
            svfr(*wrong)
    with pytest.raises(ValueError, match="squares"):
        opened(library, sets()[0], weights_of(8, WEAK) | {"fuse": np.zeros((8, 7), np.float32)}, Precision.FP32)
    assert svfr(x[:0], t, g).shape == (0, 3, 8)


def test_the_environment_chooses(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert find().chosen is sets()[-1]
    least = library.instruction_sets[0]
    monkeypatch.setenv(VARIABLE, least.value)
    assert find().chosen is least
    monkeypatch.setenv(VARIABLE, "off")
    assert find().chosen is None
    elsewhere = "avx2" if least is InstructionSet.NEON else "neon"
    monkeypatch.setenv(VARIABLE, elsewhere)
    with pytest.raises(UsageError, match=rf"{VARIABLE} is '{elsewhere}', expected one of {least.value}, .*off"):
        find()


@pytest.fixture(scope="module")
def fuzz(shared: Shared) -> Path:
    """Built with address and undefined-behaviour sanitizers, with every instruction set of x86, emulated."""
    require_tools()
    return shared.folder("native-fuzz", build_fuzz) / "fuzz"


def test_random_shapes_on_every_instruction_set(fuzz: Path, show: Callable[[str], None]) -> None:
    """`SIGRL_FUZZ` is how many; tiles of AMX in plain C++ take a second each."""
    count = os.environ.get("SIGRL_FUZZ", "15")
    done = subprocess.run([fuzz, "0", count], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.split() == ["avx2", "avx-vnni", "avx512", "amx"]
    show(f"{count} random shapes on AVX2, AVX-VNNI, AVX-512 and AMX, emulated")


def test_threads_share_nothing_unguarded(library: Library, shared: Shared) -> None:
    """Its own threads, and two callers at once, under the thread sanitizer: an exit status of its own where there is a race."""
    require_compiler()
    program = shared.folder("native-races", build_race_check) / "fuzz"
    done = subprocess.run([program, "0", "15"], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the sanitizer does not take this kernel's layout of addresses")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.split() == [each.value for each in library.instruction_sets if each not in ON_REQUEST]


@pytest.mark.parametrize(("cpu", "sets"), [("max", ["neon", "i8mm"]), ("neoverse-n1", ["neon"]), ("cortex-a72", [])])
def test_random_shapes_on_arm(shared: Shared, show: Callable[[str], None], cpu: str, sets: list[str]) -> None:
    """With the same sanitizers. One on which nothing runs shows that what is missing is seen."""
    require_arm_tools()
    count = os.environ.get("SIGRL_FUZZ", "6")
    done = run_on_arm(shared.folder("native-arm-fuzz", build_arm_fuzz) / "fuzz", cpu, "0", count)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.split() == sets
    show(f"{count} random shapes on {' and '.join(sets) or 'no instruction set'}, emulated as {cpu}")


def test_random_shapes_on_arm_as_it_is_installed(shared: Shared) -> None:
    """Optimised, which moves what the sanitizers' build leaves in its place."""
    require_arm_tools()
    count = os.environ.get("SIGRL_FUZZ", "15")
    done = run_on_arm(shared.folder("native-arm-optimised", build_optimised_arm_fuzz) / "fuzz", "max", "0", count)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.split() == ["neon", "i8mm"]
