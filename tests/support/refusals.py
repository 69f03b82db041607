"""What a call refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sigrl_deploy.errors import SigRLError, UsageError


def refused(call: Callable[[], object], kind: type[UsageError] = UsageError) -> tuple[str, object]:
    """Argument and value of the UsageError that a call raises."""
    with pytest.raises(kind) as raised:
        call()
    return raised.value.argument, raised.value.value


def assert_refused(call: Callable[[], object], kind: type[SigRLError], *facts: str) -> None:
    """Assert that a call raises an error of a kind, in one line that holds the facts: names of files and tensors, numbers."""
    with pytest.raises(kind) as raised:
        call()
    line = str(raised.value)
    assert "\n" not in line
    for fact in facts:
        assert fact in line
