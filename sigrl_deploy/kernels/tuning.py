"""Which of a kernel's candidate launches a GPU runs fastest: measured once, kept in a file that processes share.

`tuning.json` holds, for each GPU with its driver, Triton and the kernels' source, the name of the fastest candidate of each
kernel and size. It is written under a temporary name and renamed; one that is damaged or not ours is reported and written anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from filelock import FileLock

from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import replacing
from sigrl_deploy.kernels.blocks import Launch
from sigrl_deploy.machine.cache_folder import PRIVATE, make_private

log = logging.getLogger(__name__)

FILE = "tuning.json"
FORMAT = 1
LOCK_SECONDS = 30  # how long another process may take to add its results
REPLAY = 1.0  # milliseconds that a graph of runs should take, so that starting it does not count
MOST_RUNS, REPLAYS = 50, 15
SHORTEST = 1e-3  # milliseconds, of what cannot be timed alone

Run = Callable[[], object]
Timer = Callable[[Run], float]  # milliseconds of one run


@dataclass(frozen=True)
class Case:
    """One kernel at one size: its candidates, the untuned choice first, and what runs the kernel as one of them says."""

    op: str
    size: str
    candidates: tuple[Launch, ...]
    run: Callable[[Launch], object]

    @property
    def name(self) -> str:
        return f"{self.op}, {self.size}"


@dataclass(frozen=True)
class Tuned:
    """The chosen launch of every case, by its op, and how many of them had to be measured for it."""

    launches: dict[str, Launch]
    measured: int


_kept = ""  # where Triton's cache was put by `keep_compiled`, which Triton then has in TRITON_CACHE_DIR
_discarded: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def keep_compiled(folder: Path | None) -> None:
    """Have Triton keep what it compiles in `folder`, or not at all for None. TRITON_CACHE_DIR takes precedence."""
    global _kept
    if os.environ.get("TRITON_CACHE_DIR", _kept) != _kept:
        return
    if folder is None or not _writable(folder):
        _discarded.append(tempfile.TemporaryDirectory(prefix="sigrl-deploy-kernels-"))
        folder = Path(_discarded[-1].name)
    _kept = str(folder / "triton")
    triton.knobs.cache.dir = _kept


def _writable(folder: Path) -> bool:
    try:
        make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        log.warning("%s: compiled kernels cannot be kept there (%s); the next run compiles again", folder, error.strerror)
        return False


def compile_ahead(runs: Iterable[Run]) -> None:
    """Run each once, on the current GPU and stream, several at a time: Triton compiles a kernel where it is first launched, and
    lets other threads run meanwhile. Launches that do not run are skipped.
    """
    on_gpu = torch.cuda.is_available()
    gpu, stream = (torch.cuda.current_device(), torch.cuda.current_stream()) if on_gpu else (-1, None)

    def launch(run: Run) -> None:
        # The current GPU and stream are a thread's own.
        with suppress(Exception), torch.inference_mode(), torch.cuda.device(gpu), torch.cuda.stream(stream):
            run()

    if on_gpu:
        _ = triton.runtime.driver.active  # made once, before threads ask for it
    # Where ptxas refuses a kernel, Triton prints all of it.
    with redirect_stdout(io.StringIO()), ThreadPoolExecutor(thread_name_prefix="compile") as pool:
        for _ in pool.map(launch, runs):
            pass


def milliseconds(run: Run) -> float:
    """The median time of one run on the current GPU, as in a pass: replayed in a CUDA graph, its inputs in the GPU's cache.

    The current stream is not the default one, and has no graph that is still to be replayed.
    """
    stream = torch.cuda.current_stream()
    run()  # compiles, which a capture cannot
    once = max(_time(run), SHORTEST)
    runs = max(1, min(MOST_RUNS, round(REPLAY / once)))
    graph = torch.cuda.CUDAGraph()
    # Only what this thread does is captured, so that others may use the GPU meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(runs):
            run()
    return statistics.median(_time(graph.replay) for _ in range(REPLAYS)) / runs


def _time(run: Run) -> float:
    """Milliseconds of one run on the current stream, by CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def chip() -> str:
    """The key of results: the current GPU, its driver, Triton's version and the source of the kernels."""
    from torch.utils.collect_env import get_nvidia_driver_version, run

    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    major, minor = torch.cuda.get_device_capability()
    return (
        f"{torch.cuda.get_device_name()}, sm_{major}{minor}, driver {get_nvidia_driver_version(run)}, "
        f"Triton {triton.__version__}, kernels {source.hexdigest()[:16]}"
    )


def tune(
    cases: Iterable[Case], folder: Path | None, key: str, timer: Timer, ahead: Callable[[list[Run]], None] | None = None
) -> Tuned:
    """The fastest launch of every case: as the file in `folder` says for `key`, else measured with `timer` and added there.

    `ahead` gets everything that will be measured, before measuring starts. `folder` None keeps nothing. Raises UsageError where
    no candidate of a case runs.
    """
    known = _read(folder / FILE).get(key, {}) if folder else {}
    launches, measured, unknown = {}, {}, []
    for case in cases:
        by_name = {candidate.name: candidate for candidate in case.candidates}
        found = by_name.get(known.get(case.name, {}).get("launch"))
        if found is None:
            unknown.append(case)
        else:
            launches[case.op] = found
    if unknown and ahead:
        ahead([partial(case.run, candidate) for case in unknown for candidate in case.candidates])
    for case in unknown:
        launches[case.op], time = _fastest(case, timer)
        measured[case.name] = {"launch": launches[case.op].name, "milliseconds": time}
    if measured and folder:
        _add(folder, key, measured)
    return Tuned(launches, len(measured))


def _fastest(case: Case, timer: Timer) -> tuple[Launch, float]:
    times: list[tuple[float, Launch]] = []
    reason = ""
    for candidate in case.candidates:
        try:
            with redirect_stdout(io.StringIO()):  # where ptxas refuses a kernel, Triton prints all of it
                times.append((timer(lambda launch=candidate: case.run(launch)), candidate))  # type: ignore[misc]
        except torch.OutOfMemoryError:  # another candidate would not help, fewer pictures do
            raise
        except Exception as error:  # the compiler, ptxas and the driver each have their own
            reason = reason or (str(error).strip() or type(error).__name__).splitlines()[0]
            log.debug("%s: %s does not run (%s)", case.name, candidate.name, reason)
    if not times:
        raise UsageError(
            f"{case.name}: none of {len(case.candidates)} ways to launch it runs on this GPU ({reason}); "
            "run the op in its plain form with `unfused`"
        )
    time, fastest = min(times, key=lambda pair: pair[0])
    return fastest, time


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The file's results, or {} where none can be used."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("%s: cannot be read at present (%s); the kernels are measured again", path, error.strerror or error)
        return {}
    except (ValueError, RecursionError) as error:
        log.warning("%s: is damaged (%s); the kernels are measured again", path, error)
        return {}
    if not _is_ours(content):
        log.warning("%s: holds no tuning results of this release; the kernels are measured again", path)
        return {}
    results: dict[str, dict[str, Any]] = content["results"]
    return results


def _is_ours(content: object) -> bool:
    return (
        isinstance(content, dict)
        and content.get("format") == FORMAT
        and isinstance(content.get("results"), dict)
        and all(
            isinstance(cases, dict)
            and all(isinstance(result, dict) and isinstance(result.get("launch"), str) for result in cases.values())
            for cases in content["results"].values()
        )
    )


def _add(folder: Path, key: str, measured: Mapping[str, Any]) -> None:
    """Add results to the file, and keep what other processes have added meanwhile."""
    path = folder / FILE
    try:
        make_private(folder)
        with FileLock(folder / f"{FILE}.lock", timeout=LOCK_SECONDS):
            results = _read(path)
            results[key] = {**results.get(key, {}), **measured}
            with replacing(path, PRIVATE) as temporary:
                temporary.write_text(json.dumps({"format": FORMAT, "results": results}, indent=1), encoding="utf-8")
    except OSError as error:  # filelock's Timeout is one too
        log.warning("%s: tuning results cannot be written (%s); the next run measures again", path, error.strerror or error)
