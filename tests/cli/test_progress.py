"""What long work says of itself on standard error."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sigrl_deploy import Recognizer, progress
from sigrl_deploy.progress import Progress
from tests.support.processes import on_terminal


def test_without_a_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = iter([0.0, 10.0, 31.0, 50.0, 70.0, 1000.0, 1030.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with caplog.at_level(logging.INFO), Progress(50_000, "picture") as shown:
        for done in (100, 1141, 1000, 1000, 46_758):
            shown.advance(done)
        shown.advance()
    assert caplog.messages == [
        "1,241 of 50,000 pictures, 40/s, 20 min to go",
        "3,241 of 50,000 pictures, 46/s, 17 min to go",
        "49,999 of 50,000 pictures, 50/s, 0 s to go",
    ]


def test_labels_that_are_encoded_are_counted(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    recognizer = Recognizer(bundle, device="cpu", cache_dir=False)
    caplog.clear()
    with caplog.at_level(logging.INFO, "sigrl_deploy"):
        recognizer.vocabulary([f"label {i}" for i in range(150)])
    assert [message.partition(",")[0] for message in caplog.messages] == ["64 of 150 labels", "128 of 150 labels"]


def test_a_program_that_has_not_asked_is_told_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with caplog.at_level(logging.WARNING), Progress(3, "label") as shown:
        shown.advance()
    with caplog.at_level(logging.INFO), Progress(3, "label", hidden=True) as shown:
        shown.advance()
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "has_bar"), [(0, False), (0.6, True)])
def test_a_terminal_has_a_bar_of_what_takes_a_second_and_lines_of_the_log_above_it(seconds: float, has_bar: bool) -> None:
    script = f"""
import logging, time
from sigrl_deploy.progress import Progress
logging.basicConfig(format="%(message)s", level=logging.INFO)
with Progress(3, "label") as progress:
    for i in range(3):
        time.sleep({seconds})
        progress.advance()
    logging.info("a line")
"""
    status, shown = on_terminal([sys.executable, "-c", script])
    assert status == 0
    assert (b"3/3" in shown) == has_bar
    assert re.search(rb"(^|[\r\n])a line\r\n", shown)
