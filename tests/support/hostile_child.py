"""Reads checkpoints whose paths come on standard input; says of each how it ended, how long it took and what memory it took."""

import json
import resource
import sys
import time
from pathlib import Path

from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.errors import SigRLError


def peak() -> float:
    """MB of memory at most, since `start`."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3


def start() -> float:
    """Forget the peak; MB of memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def ended(path: str) -> str:
    try:
        load_model(CheckpointOptions(path))
    except SigRLError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:  # what must not happen is told, not raised
        return f"!{type(error).__name__}: {error}"
    return "loaded"


if __name__ == "__main__":
    for good in sys.argv[1:]:
        ended(good)  # imports what the first reading imports
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (6 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # no harm to the machine, where one is not refused
    for line in sys.stdin:
        before, began = start(), time.process_time()  # busy neighbours do not count
        said = ended(line.rstrip("\n"))
        took = time.process_time() - began
        print(json.dumps({"path": line.rstrip("\n"), "said": said, "seconds": took, "megabytes": peak() - before}), flush=True)
