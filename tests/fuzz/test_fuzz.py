"""The fuzz finds the faults that it looks for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.fuzz import workers

TARGET = """
import os, sys, time

def corpus():
    return {"a": b"good"}

def mutate(data, others, rng):
    return os.environ["MISDEED"].encode()

kept = []

def examine(data):
    if data == b"raises":
        raise KeyError("lost")
    if data == b"dies":
        os.kill(os.getpid(), 11)
    if data == b"hangs":
        time.sleep(600)
    if data == b"prints":
        os.write(2, b"a word")
    if data == b"leaks":
        kept.append(os.open("/dev/null", os.O_RDONLY))
    if data == b"grows":
        kept.append(b"x" * 100_000_000)
    if data == b"works":
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    return True
"""


@pytest.mark.parametrize(
    ("misdeed", "said"),
    [
        ("raises", "KeyError: 'lost'"),
        ("dies", "ends the process with -11"),
        ("hangs", "hangs"),
        ("prints", "prints b'a word'"),
        ("leaks", "leaves a file open"),
    ],
)
def test_a_fault_is_found_and_the_next_file_is_examined(
    misdeed: str, said: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISDEED", misdeed)
    monkeypatch.setattr(workers, "HANG_SECONDS", 3.0)
    done = list(workers.outcomes(target, range(2), processes=1))
    assert sorted(each.case for each in done) == [0, 1]
    assert all(said in each.fault for each in done), done


def test_time_and_memory_are_those_of_one_file(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISDEED", "works")
    (each,) = workers.outcomes(target, range(1), processes=1)
    assert 0.3 <= each.seconds < 10
    assert each.megabytes < 50
    monkeypatch.setenv("MISDEED", "grows")
    assert all(90 < each.megabytes < 150 for each in workers.outcomes(target, range(2), processes=1))


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a target that does what the environment says."""
    name = f"misdeeds_{os.getpid()}_{time.monotonic_ns()}"
    (tmp_path / f"{name}.py").write_text(TARGET)
    monkeypatch.syspath_prepend(tmp_path)
    return name
