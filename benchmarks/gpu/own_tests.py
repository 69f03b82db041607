"""`pytest -m gpu`, for as long as there is time, with its log."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.profile import beside
from benchmarks.gpu.run import NotRunError, Run

ROOT = Path(__file__).resolve().parent.parent.parent
MARKS = ("mark.gpu", "kernel_rule")  # of a file with such tests
LEAST = 20.0  # seconds
WORKERS = 8
REHEARSED = "pictures/test_device_preprocess.py"  # on a CPU, which runs the rest of this file


def own_tests(run: Run) -> None:
    """Into `tests` what pytest's last line counts, and which tests fail."""
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if any(mark in path.read_text(encoding="utf-8") for mark in MARKS)
    ]
    options = ["-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if run.small:
        files = [str(ROOT / "tests" / REHEARSED)]
    else:
        options += ["-m", "gpu", *(["-n", str(WORKERS)] if find_spec("xdist") else [])]  # most of the time goes into compiling
    if run.left < LEAST:
        raise NotRunError(f"{max(0, run.left):.0f} s were left")
    log, status = beside(run, "pytest.log"), "ran out of time"
    # Tests put what Triton compiles where they want it.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR"}
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *files],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            status = f"exit status {process.wait(run.left - LEAST / 4)}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # so that it says what it found
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LEAST / 5)
            process.kill()
            process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    failed = sorted(set(re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)))
    run.results["tests"] = {"status": status, "counts": counts(text), "failed": failed}


def counts(text: str) -> dict[str, int]:
    """Outcomes in pytest's last line; where it was stopped before that, those of its rows of letters."""
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?|deselected)\b", text[-400:])
    if found:
        return {word: int(number) for number, word in found}
    letters = "".join(re.findall(r"^([.FEsx]+)(?: +\[ *\d+%\])?$", text, re.MULTILINE))
    words = {"passed": ".", "failed": "F", "errors": "E", "skipped": "s"}
    return {word: letters.count(letter) for word, letter in words.items() if letter in letters}
