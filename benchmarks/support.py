"""What has run where: the README's table of backends, devices and precisions."""

from __future__ import annotations

from benchmarks.tables import read, result_files, table
from sigrl_deploy.config import Backend, Device, Precision, runs

Combination = tuple[Backend, Device, Precision]
MEASURED, TESTED, NOT_RUN, CANNOT = "measured", "tested", "not yet run", "—"
_DEVICES = {Device.CPU: "CPU", Device.CUDA: "NVIDIA GPU"}


def combinations() -> list[Combination]:
    """Everything that runs somewhere, as far as `config.runs` says."""
    every = ((b, d, p) for d in _DEVICES for b in Backend.named() for p in Precision)
    return [(backend, device, precision) for backend, device, precision in every if runs(backend, precision, device)]


def run_by_tests() -> list[Combination]:
    """What every run of the test suite runs: tests/engines/test_support.py is parametrised over this list."""
    return [combination for combination in combinations() if combination[1] is Device.CPU]


def measured() -> set[tuple[str, str, str]]:
    """Backend, device and precision of every time in the results files, which hold contenders of other names too."""
    records = [record for path in result_files() for record in read(path)["records"]]
    return {(r["backend"], r["device"], r["precision"]) for r in records if r["status"] == "ok"}


def support_table() -> str:
    """One row per backend and device, one column per precision."""
    timed, by_tests, possible = measured(), set(run_by_tests()), set(combinations())

    def status(combination: Combination) -> str:
        if combination not in possible:
            return CANNOT
        values = combination[0].value, combination[1].value, combination[2].value
        return MEASURED if values in timed else TESTED if combination in by_tests else NOT_RUN

    rows = [
        [f"`{backend.value}`, {name}", *(status((backend, device, precision)) for precision in Precision)]
        for device, name in _DEVICES.items()
        for backend in Backend.named()
        if runs(backend, device=device)
    ]
    caption = (
        f"{MEASURED}: its times are in [the benchmarks](docs/benchmarks.md). {TESTED}: every run of the test suite compares "
        f"its scores with those of ONNX Runtime in fp32. {CANNOT}: there is no such combination."
    )
    return f"{table(['', *(precision.value for precision in Precision)], rows)}\n{caption}\n"
