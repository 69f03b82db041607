"""The sections by name."""

from __future__ import annotations

from gpu.ceilings import ceilings, machine
from gpu.compiling import compiling
from gpu.kernel_errors import kernel_errors
from gpu.kernel_times import kernel_times
from gpu.own_tests import own_tests
from gpu.passes import more_passes, passes
from gpu.profile import ncu, profile
from gpu.run import Section
from gpu.stages import stages

SECTIONS: dict[str, Section] = {
    section.__name__: section
    for section in (
        machine, ceilings, compiling, kernel_errors, kernel_times, passes, stages, profile, more_passes, ncu, own_tests
    )
}  # fmt: skip
