"""Writing a bundle as a model repository for Triton Inference Server."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from msgspec.structs import replace

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.engine_records import MOST_LABELS, Ops
from sigrl_deploy.bundle.manifest import MANIFEST, TOKENIZER, VOCABULARY, Manifest
from sigrl_deploy.bundle.precisions import choose_precision
from sigrl_deploy.config import Backend, Device, Precision, runs
from sigrl_deploy.errors import UsageError
from sigrl_deploy.export.out_folder import replaced_folder
from sigrl_deploy.tensorrt.find import damage
from sigrl_deploy.triton_server import names
from sigrl_deploy.triton_server.configs import (
    PICTURE_FILE,
    Target,
    front_config,
    text_config,
    visual_config,
)
from sigrl_deploy.version import __version__, tool_versions

log = logging.getLogger(__name__)

ABOUT = "sigrl-deploy.json"  # says what wrote the repository; Triton looks at folders only
_PHOTOS = Path(__file__).resolve().parents[1] / "data" / "photos"
_MODEL = f'''"""Written by sigrl-deploy {__version__}: the front model, which is in the installed sigrl_deploy."""

from sigrl_deploy.triton_server.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_MOST_PICTURES = 16  # that share a batch


@dataclass(frozen=True)
class RepositoryOptions:
    """What to write, and for which of Triton's backends.

    bundle: the folder that export wrote.
    out: the folder to write, which must not exist yet, or be empty.
    backend: `onnxruntime` or `tensorrt`; for the latter the bundle must hold TensorRT's engines of ops `inlined`.
    precision: one of the bundle's; by default the first that the backend runs.
    """

    bundle: Path
    out: Path
    backend: Backend = Backend.ONNXRUNTIME
    precision: Precision | None = None


@dataclass(frozen=True)
class _Graph:
    """A graph's target, and its files in the repository, each with where it comes from."""

    target: Target
    files: dict[str, Path]
    most_pictures: int = _MOST_PICTURES
    most_labels: int = MOST_LABELS


def write_repository(options: RepositoryOptions) -> list[str]:
    """Write the repository, whole or not at all. Returns the names of its models.

    Raises UsageError for an `out` that holds something, and for options that do not suit the bundle; BundleError for a bundle
    that cannot be used; ExportError where the folder cannot be written.
    """
    if os.path.exists(options.out) and not (os.path.isdir(options.out) and not os.listdir(options.out)):
        raise UsageError("exists already; choose another folder, or remove it", argument="out", value=options.out)
    bundle = Bundle(options.bundle)
    precision = choose_precision(bundle, options.backend, Device.AUTO, options.precision)
    variant = replace(bundle.manifest.variants[precision], weights=None)
    find = _plans if options.backend is Backend.TENSORRT else _onnx
    graphs = {names.VISUAL: find(bundle, precision, "visual", variant.visual)}
    if variant.text is not None:
        graphs[names.TEXT] = find(bundle, precision, "text", variant.text)
    parts = [part for name in (variant.visual, variant.text) if name for part in bundle.parts(name)]
    kept = [name for name in (TOKENIZER, VOCABULARY) if bundle.has(name)]
    hashes = {name: bundle.manifest.files[name] for name in (*kept, *parts)}
    manifest = replace(bundle.manifest, variants={precision: variant}, files=hashes, engines=(), verified=())
    with replaced_folder(options.out) as folder:
        _write_front(folder / names.FRONT, bundle, manifest, graphs[names.VISUAL])
        for name, graph in graphs.items():
            config = visual_config if name == names.VISUAL else text_config
            _write_graph(folder / name, config(manifest, graph.target), graph.files)
        about = {
            "tools": tool_versions(),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "bundle": options.bundle.name,
            "precision": precision.value,
            "backend": options.backend.value,
            "files": hashes,
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return [names.FRONT, *graphs]


def _onnx(bundle: Bundle, precision: Precision, graph: str, name: str) -> _Graph:
    """The ONNX file of a graph, with the files that hold its weights under their own names, by which it refers to them."""
    on_cpu, on_gpu = (runs(Backend.ONNXRUNTIME, precision, device) for device in (Device.CPU, Device.CUDA))
    kind = "KIND_AUTO" if on_cpu and on_gpu else "KIND_CPU" if on_cpu else "KIND_GPU"
    graph_file, *others = bundle.parts(name)
    files = {"model.onnx": bundle.file(graph_file)} | {other: bundle.file(other) for other in others}
    return _Graph(Target("onnxruntime", kind, "model.onnx", {}), files)


def _plans(bundle: Bundle, precision: Precision, graph: str, name: str) -> _Graph:
    """The newest engine for each compute capability.

    Only those of TensorRT itself with standard ops run in Triton: others need this project's kernels.
    """
    found = [
        record
        for record in bundle.manifest.engines
        if record.key.graph == graph
        and record.key.precision is precision
        and record.key.onnx == bundle.manifest.files[name]
        and record.key.library.split()[0] == "tensorrt"
        and record.key.ops is Ops.INLINED
        and not damage(bundle, record)
    ]
    if not found:
        problem = (
            f"{bundle.path} holds no whole {graph} engine of TensorRT in {precision.value} with standard ops; build it by "
            "`sigrl-deploy export tensorrt --ops inlined`"
        )
        raise UsageError(problem, argument="backend", value="tensorrt")
    newest = {capability: record for record in found for capability in record.key.compute_capabilities}
    used = {record.file: record for record in newest.values()}
    for record in used.values():
        profile = record.key.profile
        if max(profile.labels.least, profile.batch.least) > 1:
            least = f"{profile.batch.least} pictures and {profile.labels.least} labels"
            problem = f"{record.file} takes {least} at least, and requests may bring one; build it again for 1"
            raise UsageError(problem, argument="backend", value="tensorrt")
    plans = {capability: record.file for capability, record in newest.items()}
    profiles = [record.key.profile for record in used.values()]
    return _Graph(
        Target("tensorrt", "KIND_GPU", found[-1].file, plans),
        {file: bundle.engine_path(record) for file, record in used.items()},
        min(_MOST_PICTURES, *(profile.batch.most for profile in profiles)),
        min(MOST_LABELS, *(profile.labels.most for profile in profiles)),
    )


def _write_front(folder: Path, bundle: Bundle, manifest: Manifest, visual: _Graph) -> None:
    inner = folder / str(names.VERSION) / names.BUNDLE
    inner.mkdir(parents=True)
    (inner / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    for name in (TOKENIZER, VOCABULARY):
        if bundle.has(name):
            _place(bundle.file(name), inner / name)
    (inner.parent / "model.py").write_text(_MODEL, encoding="utf-8")
    warm = folder / "warmup"
    warm.mkdir()
    picture = min((path.read_bytes() for path in _PHOTOS.glob("*.jpg")), key=len)
    (warm / PICTURE_FILE).write_bytes(len(picture).to_bytes(4, "little") + picture)  # as Triton reads BYTES from a file
    config = front_config(visual.most_pictures, visual.most_labels)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")


def _write_graph(folder: Path, config: str, files: dict[str, Path]) -> None:
    version = folder / str(names.VERSION)
    version.mkdir(parents=True)
    for name, source in files.items():
        _place(source, version / name)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")


def _place(source: Path, target: Path) -> None:
    """A hard link, where the file system has them: a bundle's files are replaced and never changed. Else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        log.debug("%s: copied, since it cannot be linked (%s)", source, error.strerror)
        shutil.copyfile(source, target)
