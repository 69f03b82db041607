"""How tests start runs, also those that they are going to interrupt, and what runs in others that end as they should not."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

INFER = [sys.executable, "-m", "sigrl_deploy", "infer"]


def infer(*arguments: str | Path, status: int = 0, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """One run of `sigrl-deploy infer`, which must exit with `status`."""
    run = subprocess.run([*INFER, *map(str, arguments)], **{"capture_output": True, **options})
    assert run.returncode == status, run.stderr.decode()
    assert b"Traceback" not in (run.stderr or b"")
    assert b"Exception ignored" not in (run.stderr or b"")
    return run


def records(lines: bytes) -> list[dict[str, Any]]:
    """What JSON lines hold."""
    return [json.loads(line) for line in lines.split(b"\n")[:-1]]


def infer_until(lines: int, partial: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """A run that has written so many lines, or has ended."""
    process = subprocess.Popen([*INFER, *map(str, arguments)], stderr=subprocess.PIPE, preexec_fn=interruptible)
    while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") >= lines):
        time.sleep(0.001)
    return process


def on_terminal(command: list[str], **options: Any) -> tuple[int, bytes]:
    """Exit status of a process, and what a terminal of 80 columns sees of its standard error."""
    terminal, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen(command, stderr=child, **options)
    os.close(child)
    shown = b""
    try:
        while block := os.read(terminal, 1 << 16):
            shown += block
    except OSError:  # how Linux reports that the other side has closed
        pass
    os.close(terminal)
    return process.wait(), shown


def interruptible() -> None:
    """In the child, before it runs: a test run that was started in the background hands on SIGINT as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def misbehave(connection: Connection, work: dict[str, str]) -> None:
    """A child that does with each task what `work` says."""
    while True:
        task = connection.recv()
        if work[task] == "dies":
            os._exit(1)
        if work[task] == "hangs":
            time.sleep(600)
        connection.send((work[task], work[task] != "loses the GPU"))
