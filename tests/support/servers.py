"""Real servers in processes of their own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ADDRESS = re.compile(r"http://[\d.:[\]]+:\d+")
_SECONDS = 120  # for anything: machines that run the tests are slow at times


class Served:
    """A running `sigrl-deploy serve`: its address, its process and what it has said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.said = process, list[str]()
        assert process.stderr is not None
        for line in process.stderr:
            self.said.append(line)
            if found := _ADDRESS.search(line):
                self.url = found[0]
                break
        else:
            raise AssertionError(f"it did not start: {''.join(self.said)}")
        threading.Thread(target=self.said.extend, args=(process.stderr,), daemon=True).start()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the exit status."""
        self.process.send_signal(number)
        return self.process.wait(_SECONDS)


@contextmanager
def serving(
    bundle: Path, *arguments: object, module: str = "sigrl_deploy", breaks: bool = False, **options: Any
) -> Iterator[Served]:
    """A service of a bundle on a free port. It must end with exit status 0, if it still runs at the end of the block.

    `module` takes the place of the program, `options` are Popen's. Only where its engine breaks it may log tracebacks.
    """
    command = [sys.executable, "-m", module, "serve", "--bundle", str(bundle), "--port", "0", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            served = Served(process)
            yield served
            if process.poll() is None:
                assert served.stop() == 0, "".join(served.said)
        finally:
            process.kill()
    assert breaks or "Traceback" not in "".join(served.said)
