"""A running service, as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVE = [sys.executable, "-m", "sigrl_deploy", "serve"]


@contextmanager
def serving(*arguments: str | Path) -> Iterator[str]:
    """The address of `sigrl-deploy serve` with these arguments, on a port of its own choice. It is stopped afterwards."""
    command = [*SERVE, *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said: list[str] = []
    reader = threading.Thread(target=said.extend, args=(process.stderr,))
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError(f"the service did not start:\n{''.join(said)}")
        reader.start()  # or the pipe fills, and the service waits
        yield found[0]
        process.terminate()
        assert process.wait(60) == 0, "".join(said)
    finally:
        process.kill()
        process.wait()
        if reader.ident is not None:
            reader.join()
        process.stderr.close()
