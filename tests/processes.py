"""How tests start processes that they are going to interrupt, and what runs in others that end as they should not."""

import os
import signal
import time
from multiprocessing.connection import Connection


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
