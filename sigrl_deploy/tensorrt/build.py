"""Building TensorRT engines of a bundle. Each is built in a process of its own, and written into the bundle."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from msgspec.structs import replace
from tqdm import tqdm

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.engine_records import (
    DEFAULT_BATCH,
    MOST_LABELS,
    EngineKey,
    EngineRecord,
    Ops,
    Profile,
    Range,
    version_tuple,
)
from sigrl_deploy.bundle.manifest import LOCK, VOCABULARY, Manifest, change_manifest
from sigrl_deploy.bundle.precisions import choose_precision
from sigrl_deploy.config import Backend, Device, Precision
from sigrl_deploy.errors import ExportError, UsageError
from sigrl_deploy.files import read_arrays, sha256_file
from sigrl_deploy.machine.gpu import Gpu, NoGpuError, gpu_at_hand
from sigrl_deploy.tensorrt.library import Library, open_library
from sigrl_deploy.vocabulary.cache import LABELS_PER_BATCH

log = logging.getLogger(__name__)

_USUAL_PROMPT = 16  # tokens
TIMING_CACHE = b"ptrt"  # the first bytes of a timing cache
_LEFT_OVER = re.compile(r"\..+\.engine\.[0-9a-f]+\.tmp")  # temporary files of a build that was killed


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and for which GPUs. None means: what the bundle or the GPU of this machine suggests.

    precision: one that the bundle holds, not int8.
    ops: how SVFR runs.
    batch, labels: the batch sizes and label counts that the engine accepts.
    library: "tensorrt" or "tensorrt_rtx".
    workspace: the most scratch memory, in bytes.
    timing_cache: a file of measured times, read and written again, which makes builds faster.
    compute_capabilities: build ahead of time for these, such as "8.9", whatever GPU is here (TensorRT for RTX only).
    hardware_compatible: the engine also runs on other GPUs, Ampere and newer.
    version_compatible: the engine also runs in later releases of the same major version (TensorRT only).
    force: build engines that are there already too.
    """

    bundle: Path
    precision: Precision | None = None
    ops: Ops | None = None
    batch: Range | None = None
    labels: Range | None = None
    library: str | None = None
    workspace: int | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatible: bool = False
    version_compatible: bool = False
    force: bool = False


@dataclass(frozen=True)
class Task:
    """One build, as the child process reads it. `shapes` has the least, best and most shape of every input."""

    library: str
    onnx: str
    out: str
    shapes: dict[str, list[list[int]]]
    workspace: int | None
    timing_cache: str | None
    compute_capabilities: list[str]
    hardware_compatible: bool
    version_compatible: bool
    plugin: dict[str, Any] | None  # what `plugin.register` needs, where the graph has plugin nodes


def build_engines(options: BuildOptions) -> list[tuple[EngineRecord, bool]]:
    """Build the visual engine, and the text engine where the bundle has a text graph.

    Returns the record of each, and whether it was built now: an engine that is in the bundle already is kept, unless
    `options.force`. One process at a time builds for a bundle; others wait. Raises UsageError for options that contradict each
    other or do not suit this machine, ExportError where a build fails.
    """
    bundle, library = Bundle(options.bundle), open_library(options.library)
    keys = engine_keys(bundle, library, options)
    try:
        with _alone(bundle):
            # The bundle is opened again for each engine: the build before has added its record.
            return [_build(Bundle(options.bundle), key, library, options) for key in keys]
    except OSError as error:
        # A copy of the graph is written to the folder for temporary files.
        reason = f"it or {tempfile.gettempdir()} cannot be written ({error.strerror or error})"
        raise ExportError(
            f"{bundle.path}: no engine was built: {reason}; free some space, or copy the bundle elsewhere"
        ) from None


def engine_keys(bundle: Bundle, library: Library, options: BuildOptions) -> list[EngineKey]:
    """The keys of the engines that `build_engines` builds. Raises UsageError as it does."""
    if options.version_compatible and library.is_rtx:
        problem = f"{library.name} builds no such engines; leave it out, or use `library='tensorrt'`"
        raise UsageError(problem, argument="version_compatible")
    if options.compute_capabilities and not library.is_rtx:
        problem = "TensorRT builds for the GPU of this machine only; leave it out, or use `library='tensorrt_rtx'`"
        raise UsageError(problem, argument="compute_capabilities")
    if options.timing_cache:
        _check_timing_cache(options.timing_cache, bundle)
    gpu = _gpu(options)
    for capability in options.compute_capabilities:
        if capability not in library.capabilities:
            problem = (
                f"{library.full_name} builds for {', '.join(library.capabilities)}; for another GPU, build on a machine that "
                "has it, with `library='tensorrt'` and without `compute_capabilities`"
            )
            raise UsageError(problem, argument="compute_capabilities", value=capability)
    precision = choose_precision(bundle, Backend.TENSORRT, Device.CUDA, options.precision)
    capabilities = options.compute_capabilities or ((gpu.compute_capability,) if gpu else ())
    variant = bundle.manifest.variants[precision]
    visual = EngineKey(
        graph="visual",
        onnx=bundle.manifest.files[variant.visual],
        library=library.full_name,
        precision=precision,
        ops=_ops(bundle, library, options.ops),
        profile=Profile(options.batch or DEFAULT_BATCH, options.labels or default_labels(bundle)),
        compute_capabilities=tuple(sorted(set(capabilities), key=float)),
        gpu=gpu.name if gpu else None,
        driver=gpu.driver if gpu else None,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
    )
    if variant.text is None:
        return [visual]
    # The text graph takes no pictures, so one engine serves every batch size.
    profile = Profile(Range(1, 1, 1), visual.profile.labels)
    return [visual, replace(visual, graph="text", onnx=bundle.manifest.files[variant.text], ops=Ops.INLINED, profile=profile)]


def _check_timing_cache(path: Path, bundle: Bundle) -> None:
    """Raise UsageError where a file would be lost if measured times were written over it."""
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError("expected a file in a folder that exists", argument="timing_cache", value=path)
    if path.parent.resolve() == bundle.path.resolve():
        raise UsageError("is inside the bundle; choose another place", argument="timing_cache", value=path)
    if path.is_file() and (content := path.read_bytes()) and not content.startswith(TIMING_CACHE):
        problem = "is not a timing cache, and would be overwritten; choose another file"
        raise UsageError(problem, argument="timing_cache", value=path)


def _gpu(options: BuildOptions) -> Gpu | None:
    """The GPU to build for; None where compute capabilities are named instead."""
    for capability in options.compute_capabilities:
        if not re.fullmatch(r"\d{1,2}\.\d", capability):
            raise UsageError("expected a number such as 8.9", argument="compute_capabilities", value=capability)
    if options.compute_capabilities:
        return None
    try:
        return gpu_at_hand()
    except NoGpuError as error:
        raise UsageError(
            f"no GPU to build for: {error}; name the compute capability of the GPU that the engine is for, such as "
            "`compute_capabilities=('8.9',)` (with TensorRT for RTX)",
            argument="compute_capabilities",
        ) from None


def _ops(bundle: Bundle, library: Library, asked: Ops | None) -> Ops:
    if not bundle.manifest.arch.has_graph:
        if asked not in (None, Ops.INLINED):
            raise UsageError(f"{bundle.manifest.arch.value} has no SVFR; leave it out", argument="ops", value=asked.value)
        return Ops.INLINED
    if asked is Ops.PLUGIN and library.is_rtx:
        problem = f"{library.name} takes no plugins; use `ops='fused'`, `ops='inlined'` or `library='tensorrt'`"
        raise UsageError(problem, argument="ops", value=asked.value)
    return asked or Ops.FUSED


def default_labels(bundle: Bundle) -> Range:
    """The range of label counts, tuned for the bundle's own vocabulary where it has one, or else for a hundred labels."""
    best = len(read_arrays(bundle.file(VOCABULARY), ("labels",))["labels"]) if bundle.has(VOCABULARY) else 100
    return Range(1, best, max(best, MOST_LABELS))


def shapes(manifest: Manifest, graph: str, profile: Profile) -> dict[str, list[list[int]]]:
    """For every input that a graph ("visual" or "text") may have, its least, best and most shape."""
    batch, labels = profile.batch, profile.labels
    if graph == "visual":
        picture = [3, manifest.image_size, manifest.image_size]
        rows = [[size, manifest.embed_dim] for size in (labels.least, labels.best, labels.most)]
        pixels = [[size, *picture] for size in (batch.least, batch.best, batch.most)]
        return {"pixels": pixels, "label_embedding": rows, "graph_projection": rows}
    context = manifest.context_length or 0
    fewest = 0 if manifest.arch.has_graph else 1
    return {
        # At least one row, since a Loop over no labels builds wrongly. The runtime puts a row before those that it encodes.
        "cached_embedding": [[size, manifest.embed_dim] for size in (1, labels.best, labels.most)],
        "token_ids": [
            [fewest, 1],
            [LABELS_PER_BATCH, min(_USUAL_PROMPT, context)],
            [LABELS_PER_BATCH, context],
        ],
    }


@contextmanager
def _alone(bundle: Bundle) -> Iterator[None]:
    lock = FileLock(bundle.path / f"{LOCK}-engines")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("%s: another process builds engines for it; waiting", bundle.path)
        lock.acquire()
    try:
        for path in bundle.path.iterdir():
            if _LEFT_OVER.fullmatch(path.name):
                path.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _build(bundle: Bundle, key: EngineKey, library: Library, options: BuildOptions) -> tuple[EngineRecord, bool]:
    known = next((record for record in bundle.manifest.engines if record.key == key), None)
    if known and not options.force:
        path = bundle.engine_path(known)
        if path.is_file() and sha256_file(path) == known.sha256:
            log.info("%s: is there already, and is kept", known.file)
            return known, False
        log.warning("%s: is %s; building it again", known.file, "damaged" if path.is_file() else "missing")
    log.info("building %s; %s", key.file_name, expected_time(bundle, key))
    with tempfile.TemporaryDirectory(prefix="sigrl-deploy-") as folder:
        task = Task(
            library=library.name,
            onnx=str(_source(bundle, key, Path(folder))),
            out=str(bundle.path / key.file_name),
            shapes=shapes(bundle.manifest, key.graph, key.profile),
            workspace=options.workspace,
            timing_cache=str(options.timing_cache) if options.timing_cache else None,
            compute_capabilities=list(key.compute_capabilities) if key.gpu is None else [],
            hardware_compatible=key.hardware_compatible,
            version_compatible=key.version_compatible,
            plugin=_plugin(bundle, key),
        )
        seconds = run_builder(task, Path(folder))
    path = bundle.path / key.file_name
    record = EngineRecord(key, path.name, sha256_file(path), path.stat().st_size, seconds)
    try:
        change_manifest(bundle.path, lambda manifest: replace(manifest, engines=_with(manifest.engines, record)))
    except BaseException:
        path.unlink(missing_ok=True)  # without a record nobody would find it
        raise
    return record, True


def _with(engines: Sequence[EngineRecord], record: EngineRecord) -> tuple[EngineRecord, ...]:
    return (*(other for other in engines if other.file != record.file), record)


def expected_time(bundle: Bundle, key: EngineKey) -> str:
    """How long such builds took before, according to the bundle's own records."""
    same = key.graph, key.ops, key.library
    known = bundle.manifest.engines
    times = [record.seconds for record in known if (record.key.graph, record.key.ops, record.key.library) == same]
    if not times:
        return "there is no record of how long that takes"
    spread = dict.fromkeys(f"{time:.0f}" for time in (min(times), max(times)))
    return f"such builds took {' to '.join(spread)} s before" if len(times) > 1 else f"it took {times[0]:.0f} s before"


def _source(bundle: Bundle, key: EngineKey, folder: Path) -> Path:
    """The ONNX file to build from: the bundle's, or a copy in `folder` with SVFR cut off or replaced by the plugin."""
    variant = bundle.manifest.variants[key.precision]
    name = variant.visual if key.graph == "visual" else variant.text
    assert name is not None
    path = bundle.file(name)
    if key.ops is Ops.INLINED:
        return path
    import onnx

    from sigrl_deploy.graphs.cutting import tower

    changed: Callable[[onnx.ModelProto], onnx.ModelProto] = tower
    if key.ops is Ops.PLUGIN:
        from sigrl_deploy.tensorrt.plugin import with_plugin

        changed = with_plugin
    out = folder / path.name
    onnx.save(changed(onnx.load(path)), out, save_as_external_data=True, location=f"{out.name}.data")
    return out


def _plugin(bundle: Bundle, key: EngineKey) -> dict[str, Any] | None:
    if key.ops is not Ops.PLUGIN:
        return None
    if len(key.compute_capabilities) > 1:
        raise UsageError("kernels are compiled for one compute capability; name one", argument="ops", value="plugin")
    manifest = bundle.manifest
    sizes = {"patches": manifest.local_features, "dim": manifest.embed_dim}
    return sizes | {"precision": key.precision.value, "capability": version_tuple(key.compute_capabilities[0])}


def run_builder(task: Task, folder: Path) -> float:
    """Build in a child process, with a progress bar, and return the seconds that it took.

    `folder` is for the task's file. Raises ExportError where the child fails or dies.
    """
    name = Path(task.out).name
    path = folder / "task.json"
    path.write_text(json.dumps(asdict(task)), encoding="utf-8")
    command = [sys.executable, "-m", "sigrl_deploy.tensorrt.builder", str(path)]
    last: dict[str, Any] = {}
    # The child imports this package from where it is, and nothing from the current folder.
    package = str(Path(__file__).parents[2])
    search = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": search}
    how: dict[str, Any] = {"text": True, "errors": "replace", "env": environment}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, **how) as child:
            assert child.stdout is not None
            try:
                with tqdm(desc=name, unit="step", leave=False, disable=None) as bar:
                    for line in child.stdout:
                        message = _message(line)
                        if "warning" in message:
                            log.warning("%s", message["warning"])
                        _show(bar, message)
                        last = message or last
            except BaseException:
                child.terminate()
                raise
        errors.seek(0)
        printed = [line for line in errors.read().splitlines() if line.strip()]
    if child.returncode == 0 and "seconds" in last:
        return round(time.perf_counter() - start, 1)
    reason = last.get("error") or (printed[-1] if printed else "the builder gave no reason")
    if child.returncode < 0:
        name_of_signal = signal.Signals(-child.returncode).name
        reason = f"the builder was ended by {name_of_signal}"
        if name_of_signal == "SIGKILL":
            reason += ", most likely because memory ran out: build with smaller `batch` and `labels`"
    raise ExportError(f"{name}: {reason}; no such engine was written")


def _message(line: str) -> dict[str, Any]:
    """A line that the child printed; empty for one that TensorRT itself printed."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _show(bar: tqdm, message: dict[str, Any]) -> None:
    if "step" in message:
        bar.total, bar.n = message["of"], message["step"]
        bar.set_postfix_str(message["phase"], refresh=False)
        bar.refresh()
