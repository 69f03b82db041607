"""Signals at any moment, from the first import on: one line, an exit status, and never a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import interruptible

# -X importtime says when a module has been imported: the first one of click comes right behind the handler.
PYTHON = [sys.executable, "-X", "importtime"]


def _interrupted(command: list[str], moment: float, how: signal.Signals = signal.SIGINT) -> tuple[int, list[str]]:
    """Exit status and lines of a process that gets a signal so many seconds after it has begun to import the command line."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)
    assert process.stderr is not None
    for line in process.stderr:
        if "click" in line:
            break
    time.sleep(moment)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    return process.returncode, [line for line in error.splitlines() if not line.startswith("import time:")]


@pytest.mark.parametrize("start", range(3))
def test_an_interruption_at_any_moment_is_one_line(
    bundle: Path, labels: Path, photos: list[Path], start: int, tmp_path: Path
) -> None:
    infer = ["infer", str(photos[0]), "--bundle", str(bundle), "--labels", str(labels), "--device", "cpu"]
    infer += ["--cache-dir", str(tmp_path)]
    statuses = set()
    for moment in (0.01, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2)[start::3]:
        status, said = _interrupted([*PYTHON, "-m", "sigrl_deploy", *infer], moment + 0.03 * start)
        statuses.add(status)
        rest = [line for line in said if not line.startswith("engine: ")]
        # The last when Python has ended all but itself, and signals have their default action again.
        assert (status, rest) in [(130, ["interrupted"]), (0, []), (-signal.SIGINT, [])], said
    assert 130 in statuses


def test_the_export_script_is_interrupted_in_one_line_too(weights: Path, tmp_path: Path) -> None:
    """While it imports torch, which takes longest, and after."""
    script = [*PYTHON, str(ROOT / "export" / "to_onnx.py"), str(weights / "sigrl.pth"), "--out", str(tmp_path / "bundle")]
    script += ["--text-tower", str(weights / "text.pth")]
    for moment in (0.05, 0.9, 3):
        status, said = _interrupted(script, moment)
        assert status == 130, said
        assert said[-1] == "interrupted"
        assert not any("Traceback" in line or line.startswith("  ") for line in said)  # a fast machine has said more by then


def test_a_signal_that_comes_in_an_import_waits_for_its_end(tmp_path: Path) -> None:
    """An extension module would make an ImportError of it."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.3)\nprint('imported', flush=True)\n"
    )
    script = """
from sigrl_deploy.cli.interrupts import Interrupted, interruptible
import time
try:
    with interruptible():
        import slow
        time.sleep(20)
except Interrupted as error:
    print(error, error.exit_code)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (run.stdout, run.stderr) == ("imported\nterminated 143\n", "")


def test_a_signal_in_a_callback_that_can_raise_nothing_is_not_lost() -> None:
    script = """
import os, signal, time
from sigrl_deploy.cli.interrupts import Interrupted, interruptible
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
try:
    with interruptible():
        Last()
        time.sleep(20)
except Interrupted as error:
    print(error, error.exit_code)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, preexec_fn=interruptible, cwd=ROOT
    )
    assert (run.stdout, run.stderr) == ("interrupted 130\n", "")
