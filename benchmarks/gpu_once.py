"""Everything that a few minutes on a GPU can tell, measured in one process from seeded weights into one file.

    python -m benchmarks.gpu_once --out benchmarks/results      # writes h100.json there, or as the GPU is called
    python -m benchmarks.gpu_once --out OUT --seconds 240 --sections passes stages      # some of it, into the same file
    python -m benchmarks.gpu_once --out OUT --device cpu --variant tiny     # a rehearsal, in Triton's interpreter

The sections run in the order of SECTIONS. Each is guarded, as is each measurement in it: what fails, or no longer fits into
--seconds, is in `left_out` with its reason, and the file is written after every section. `report.py` makes a table, a page and
a plot of it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.random_weights import VARIANTS

if TYPE_CHECKING:
    from benchmarks.gpu.run import Run

SECTIONS = (
    "machine", "ceilings", "compiling", "kernel_errors", "kernel_times", "passes", "stages", "profile", "more_passes", "ncu",
    "own_tests",
)  # fmt: skip
GRACE = 30  # seconds beyond the time, after which a process that hangs in the driver is ended


def main() -> None:
    begun, args = time.monotonic(), parse()
    prepare(args.device)
    faulthandler.dump_traceback_later(args.seconds + GRACE, exit=True)  # the file has what came before

    import torch

    from benchmarks.gpu.run import GpuLostError, Run
    from benchmarks.gpu.sections import SECTIONS as MEASURES

    path = args.out / f"{card(args.device)}.json"
    with torch.inference_mode():
        run = Run(args.device, args.variant, path, args.seconds - (time.monotonic() - begun), earlier(path, args))
        # All others give floors, which are of its rates.
        first = [] if run.results["machine"] or "machine" in args.sections else ["machine"]
        for name in [*first, *args.sections]:
            try:
                run.section(name, MEASURES[name])
            except GpuLostError as error:
                go_on_afresh(run, name, args, str(error))
    print(f"{path}: written; what was left out, and why, in `left_out`: {len(run.results['left_out'])}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results and the logs beside them")
    parser.add_argument("--seconds", type=float, default=540, help="the time that it keeps [default: 540]")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--variant", choices=VARIANTS, default="vit-b16")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
                        help=f"some of {', '.join(SECTIONS)}, added to what is there [default: all, anew]")  # fmt: skip
    return parser.parse_args()


def prepare(device: str) -> None:
    """Set what torch and Triton read when they are imported."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    # Where Triton has it anyway: once it is named, the engine leaves it there too.
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))


def card(device: str) -> str:
    """The GPU's name as a file's: "NVIDIA H100 80GB HBM3" → "h100"."""
    if device == "cpu":
        return "rehearsal"
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: this torch finds no GPU; check its driver, or rehearse with --device cpu --variant tiny")
    words = re.split(r"[\s-]+", torch.cuda.get_device_name())
    kept = [word for word in words if not re.fullmatch(r"NVIDIA|Tesla|\d+GB|HBM\w*|PCIe|SXM\w*|NVL|GPU", word)]
    return "-".join(kept).lower() or "gpu"


def earlier(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The results that some sections are added to; none where all sections run."""
    if args.sections != list(SECTIONS) and path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return {"machine": {}, "variant": args.variant, "records": [], "left_out": [], "sections": {}}


def go_on_afresh(run: Run, name: str, args: argparse.Namespace, reason: str) -> None:
    """Run the sections after `name` in a new process: in this one a kernel has broken the CUDA context."""
    run.add("left_out", {"section": name, "what": "the rest of it", "reason": f"the GPU was lost: {reason[:200]}"})
    run.write()
    rest = args.sections[args.sections.index(name) + 1 :] if name in args.sections else args.sections
    if rest:
        sys.stderr.flush()
        options = ["--out", str(args.out), "--device", args.device, "--variant", args.variant, "--seconds", f"{run.left:.0f}"]
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu_once", *options, "--sections", *rest])


if __name__ == "__main__":
    main()
