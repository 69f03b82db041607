"""Build one engine in this process: `python -m sigrl_deploy.tensorrt.builder TASK.json`.

A process of its own, since a bad graph can crash it. Every line that it prints is a JSON object: `{"step": …, "of": …,
"phase": …}` while it builds, `{"error": …}` where it fails, and `{"seconds": …}` when the engine is at the task's `out`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from sigrl_deploy.files import replacing
from sigrl_deploy.tensorrt.library import Library, open_library

FAILED = 1


class BuildError(Exception):
    """The builder could not make an engine; the message is one line."""


def build(task: dict[str, Any]) -> None:
    """Build the engine that a task describes (see `build.Task`), and write it to the task's `out`.

    Raises BuildError where TensorRT fails, OSError where a file cannot be written, UsageError where the library does not load.
    """
    library = open_library(task["library"])
    errors: list[str] = []
    logger = library.logger(lambda severity, text: errors.append(text) if severity in ("ERROR", "INTERNAL_ERROR") else None)
    trt = library.trt
    if task["plugin"] is not None:
        _register_plugin(trt, task["plugin"])
    builder = trt.Builder(logger)
    # Strongly typed: the dtypes are those of the file.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(task["onnx"]):
        raise BuildError(f"{Path(task['onnx']).name}: {_parser_errors(parser)}")
    config = _config(library, builder, network, task)
    cache = _timing_cache(config, task["timing_cache"])
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BuildError(errors[0] if errors else "the builder gave no reason")
    with replacing(Path(task["out"])) as temporary:
        temporary.write_bytes(serialized)
    if cache is not None:
        _keep_timing_cache(config, Path(task["timing_cache"]))


def _register_plugin(trt: Any, plugin: dict[str, Any]) -> None:
    from sigrl_deploy.config import Precision
    from sigrl_deploy.tensorrt.plugin import register

    register(trt, plugin["patches"], plugin["dim"], Precision(plugin["precision"]), tuple(plugin["capability"]))


def _parser_errors(parser: Any) -> str:
    first = parser.get_error(0)
    more = f", and {parser.num_errors - 1} more errors" if parser.num_errors > 1 else ""
    return f"{first.node_operator()} {first.node_name()}: {first.desc()}{more}"


def _config(library: Library, builder: Any, network: Any, task: dict[str, Any]) -> Any:
    trt = library.trt
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 stays fp32: TF32 keeps only 10 bits of the mantissa
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # without it TensorRT for RTX cannot be captured in a CUDA graph
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if task["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, task["workspace"])
    if task["compute_capabilities"]:
        _set_capabilities(trt, config, task["compute_capabilities"])
    if task["hardware_compatible"]:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if task["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        profile.set_shape(name, *task["shapes"][name])
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"the profile {task['shapes']} does not fit the graph's inputs")
    config.progress_monitor = _monitor(trt)
    return config


def _set_capabilities(trt: Any, config: Any, capabilities: list[str]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), index)


def _monitor(trt: Any) -> Any:
    parent = os.getppid()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Prints the steps of the outermost phase, and ends the build when the parent process has ended."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outermost: tuple[str, int] | None = None

        def phase_start(self, name: str, parent_phase: str | None, steps: int) -> None:
            if parent_phase is None:
                self.outermost = name, steps
                _say(phase=name, step=0, of=steps)

        def step_complete(self, name: str, step: int) -> bool:
            if self.outermost and self.outermost[0] == name:
                _say(phase=name, step=step + 1, of=self.outermost[1])
            return os.getppid() == parent

        def phase_finish(self, name: str) -> None:
            if self.outermost and self.outermost[0] == name:
                _say(phase=name, step=self.outermost[1], of=self.outermost[1])

    return Monitor()


def _timing_cache(config: Any, path: str | None) -> Any:
    """Give the config the measured times of earlier builds, so that this one does not measure them again."""
    if path is None:
        return None
    known = Path(path).read_bytes() if Path(path).is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")  # of another GPU or release
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _keep_timing_cache(config: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
    except OSError as error:  # which is no reason to lose the engine
        _say(warning=f"{path}: cannot be written ({error.strerror}); the engine is built, but its measured times are lost")


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    from sigrl_deploy.errors import SigRLError

    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    start = time.perf_counter()
    try:
        build(task)
    except (BuildError, SigRLError) as error:
        _say(error=" ".join(str(error).split()))
    except OSError as error:
        name = Path(task["out"]).parent if error.filename is None else error.filename
        reason = error.strerror or error
        _say(error=f"{name}: cannot be read or written ({reason}); free some space, or copy the bundle elsewhere")
    except MemoryError:
        _say(error="memory ran out; build with smaller `batch` and `labels`, or on a larger machine")
    else:
        _say(seconds=round(time.perf_counter() - start, 1))
        return
    raise SystemExit(FAILED)


if __name__ == "__main__":
    main()
