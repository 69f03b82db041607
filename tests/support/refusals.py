"""What a call refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sigrl_deploy.errors import UsageError


def refused(call: Callable[[], object]) -> tuple[str, object]:
    """Argument and value of the UsageError that a call raises."""
    with pytest.raises(UsageError) as raised:
        call()
    return raised.value.argument, raised.value.value
