"""The kernels of one replay, by PyTorch's profiler, and what Nsight Compute says of both SVFR stages, where it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.gpu.cases import REHEARSED
from benchmarks.gpu.passes import tuned
from benchmarks.gpu.run import NotRunError, Run
from benchmarks.gpu.timing import captured
from sigrl_deploy.config import Precision

SIZES = (81, 1006)
SHOWN = 40  # kernels in the results; the file beside them has all
NCU_SECONDS = 60.0
STAGES = "regex:(decouple|reconstruct|stage)_kernel"
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "WarpStateStats", "LaunchStats", "Occupancy")
METRICS = ("Compute (SM) Throughput", "L2 Cache Throughput", "Duration", "Achieved Occupancy", "Registers Per Thread")
SCRIPT = "from benchmarks.gpu.profile import both_stages; both_stages()"


def profile(run: Run) -> None:
    """Into `profile`, for each size, how many kernels there are, what each takes in all, and the time between them."""
    log: list[str] = []
    for labels in REHEARSED[1:] if run.small else SIZES:
        run.attempt(f"{labels} labels", partial(kernels_of, run, labels, log))
    beside(run, "kernels.txt").write_text("\n".join(log) + "\n", encoding="utf-8")


def kernels_of(run: Run, labels: int, log: list[str]) -> None:
    engine = run.setup.engine(Precision.BF16)
    pixels, on_device = torch.from_numpy(run.setup.pixels(1)).to(run.device), tuned(run, engine, 1, labels)
    replay = captured(lambda: engine.forward(pixels, on_device), run.device)
    if run.device == "cuda":
        replay()
    activity = ProfilerActivity.CUDA if run.device == "cuda" else ProfilerActivity.CPU
    with profiler(activities=[activity]) as found:
        replay()
        if run.device == "cuda":
            torch.cuda.synchronize()
    events = [event for event in found.events() if event.device_type.name == activity.name]
    events.sort(key=lambda event: event.time_range.start)
    if not events:
        raise RuntimeError("the profiler saw no kernel")
    first, last = events[0].time_range.start, max(e.time_range.end for e in events)
    log += [f"{labels} labels, one picture, bf16: start and duration in µs", ""]
    log += [f"{e.time_range.start - first:10.2f} {e.time_range.elapsed_us():9.2f}  {e.name}" for e in events] + [""]
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in events:
        by_name[event.name[:100]].append(event.time_range.elapsed_us())
    largest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:SHOWN]
    busy = sum(sum(times) for times in by_name.values())
    run.add("profile", {
        "precision": "bf16", "batch": 1, "labels": labels, "count": len(events), "busy_us": round(busy, 1),
        "span_us": round(last - first, 1),
        "kernels": [{"name": name, "us": round(sum(times), 2), "calls": len(times)} for name, times in largest],
    })  # fmt: skip


def ncu(run: Run) -> None:
    """Nsight Compute's report of one launch of each stage, into a file; which limit they are near, into `ncu`."""
    tool = shutil.which("ncu") or next((str(path) for path in Path("/usr/local").glob("cuda*/bin/ncu")), None)
    if run.small or tool is None:
        raise NotRunError("ncu is not installed" if not run.small else "only on a GPU")
    command = [tool, "--kernel-name", STAGES, "--launch-count", "2", *(f"--section={name}" for name in SECTIONS)]
    done = subprocess.run(
        [*command, sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False,
        timeout=min(NCU_SECONDS, run.left), env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    beside(run, "ncu.txt").write_text(done.stdout[-100_000:] + done.stderr[-2000:], encoding="utf-8")
    rows = re.findall(r"^\s+(.*?)\s{2,}(\S+)\s+([\d,.]+)\s*$", done.stdout, re.MULTILINE)
    if done.returncode or not rows:
        raise RuntimeError(f"ncu ended with {done.returncode}: {' '.join(done.stdout.split())[-200:]}")
    run.results["ncu"] = [f"{name}, {unit}: {value}" for name, unit, value in rows if name in METRICS]


def both_stages() -> None:
    """Each stage once, at 1006 labels, as it is launched untuned for weights of bounded energies."""
    from sigrl_deploy.kernels import svfr

    x, w = (torch.randn(*shape, device="cuda").bfloat16() for shape in ((1, 196, 512), (512, 512)))
    t, w = torch.randn(1, 1006, 512, device="cuda").bfloat16(), w / 512**0.5
    first, second = (svfr.candidates(196, 512, torch.bfloat16, stage, bounded=True)[0] for stage in (1, 2))
    with torch.inference_mode():
        svfr.decouple(x, t[0], w, how=first)
        svfr.reconstruct(x, t, w, how=second)
        torch.cuda.synchronize()


def beside(run: Run, ending: str) -> Path:
    """A log's path, beside the results."""
    return run.path.with_name(f"{run.path.stem}-{ending}")
