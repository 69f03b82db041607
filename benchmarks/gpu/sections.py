"""The sections by name."""

from __future__ import annotations

from benchmarks.gpu.ceilings import ceilings, machine
from benchmarks.gpu.compiling import compiling
from benchmarks.gpu.kernel_errors import kernel_errors
from benchmarks.gpu.kernel_times import kernel_times
from benchmarks.gpu.own_tests import own_tests
from benchmarks.gpu.passes import more_passes, passes
from benchmarks.gpu.profile import ncu, profile
from benchmarks.gpu.run import Section
from benchmarks.gpu.stages import stages

SECTIONS: dict[str, Section] = {
    section.__name__: section
    for section in (
        machine, ceilings, compiling, kernel_errors, kernel_times, passes, stages, profile, more_passes, ncu, own_tests
    )
}  # fmt: skip
