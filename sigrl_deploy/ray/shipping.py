"""A bundle and its labels on their way to the workers: shipped to a node once, however many workers it has."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import MANIFEST
from sigrl_deploy.config import Crop
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import BundleError, UsageError, member_of
from sigrl_deploy.extras import require
from sigrl_deploy.files import read_bounded, replacing
from sigrl_deploy.machine.cache_folder import PRIVATE, default_cache_dir, make_private, require_private
from sigrl_deploy.ray.preparing import Prepared, Settings, prepare
from sigrl_deploy.recognizer.recognizer import Labels
from sigrl_deploy.recognizer.thresholds import Thresholds

_MOST_BYTES = 8 << 30  # of a bundle that goes through the object store; a ViT-H in fp32 has 4 GB
_MOST_FILE_BYTES = 1 << 33


@dataclass(frozen=True)
class Shipped:
    """What a `Tagger` is made of. It refers to Ray's object store, so it holds in the session that made it.

    Attributes:
        settings: how pictures are tagged.
        manifest: sha256 of the bundle's manifest, which has those of the other files.
        prepared: a reference to the vocabulary and the name of the run.
        files: references to the bundle's files by name; empty where all nodes have to find the bundle at its own path.
    """

    settings: Settings
    manifest: str
    prepared: Any = field(repr=False)
    files: Mapping[str, Any] = field(default_factory=dict, repr=False)


def ship(
    bundle: str | os.PathLike[str],
    labels: Labels = None,
    *,
    top: int | None = None,
    threshold: float | None = None,
    thresholds: str | os.PathLike[str] | Thresholds | None = None,
    crop: Crop | str = Crop.CENTRE,
    batch_size: int | None = None,
    options: EngineOptions | None = None,
) -> Shipped:
    """Encode the labels once, and put them and the bundle where the workers of a Ray cluster find them.

    Call it on the driver after `ray.init`. Nodes that find the same bundle at the same path read it there; others get its files
    through the object store, and keep them in their cache folder.

    >>> import ray
    >>> from sigrl_deploy.ray import Tagger, ship
    >>> shipped = ship("bundle", "labels.txt", top=5)
    >>> dataset = ray.data.read_binary_files("pictures", include_paths=True)
    >>> tagged = dataset.map_batches(
    ...     Tagger, fn_constructor_args=[shipped], batch_format="pyarrow", batch_size=64, num_cpus=1,
    ...     compute=ray.data.ActorPoolStrategy(size=1),
    ... )

    Arguments are those of `Recognizer` and `Recognizer.recognize`. Where workers have a GPU and the driver has none, give
    `options` that say so, or call `ship` in a task that has one: labels hold for the backend and precision that encoded them.

    Raises UsageError, LabelError and BundleError as `Recognizer` does, and UsageError where Ray was not started.
    """
    require("ray", "pyarrow", extra="ray")
    read = thresholds if thresholds is None or isinstance(thresholds, Thresholds) else Thresholds.read(os.fsdecode(thresholds))
    settings = Settings(
        Path(bundle).absolute(),
        top=top,
        threshold=threshold,
        thresholds=read,
        crop=member_of(Crop, crop, "crop"),
        batch_size=batch_size,
        engine=options or EngineOptions(),
    )
    return put(settings, prepare(settings, labels))


def put(settings: Settings, prepared: Prepared | None) -> Shipped:
    """Put what was prepared, and where Ray has several nodes the bundle, into the object store.

    Raises UsageError where Ray was not started.
    """
    import ray

    if not ray.is_initialized():
        raise UsageError("Ray was not started; call ray.init() first")
    content = read_bounded(settings.bundle / MANIFEST, _MOST_FILE_BYTES)
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    files = {} if nodes == 1 else {name: ray.put(file) for name, file in _files(settings.bundle).items()}
    return Shipped(settings, hashlib.sha256(content).hexdigest(), ray.put(prepared), files)


def _files(folder: Path) -> dict[str, bytes]:
    """The content of the manifest and of the files that it lists; none where they are too large for that."""
    paths = [folder / MANIFEST, *(folder / name for name in Bundle(folder).manifest.files)]
    size = sum(path.stat().st_size for path in paths)
    if size > _MOST_BYTES:
        return {}  # a node that does not have it at its path says so
    return {path.name: read_bounded(path, _MOST_FILE_BYTES) for path in paths}


def local_settings(shipped: Shipped) -> Settings:
    """The settings with the bundle's path on this node, to which its files are written where they are missing.

    Raises BundleError where the bundle is neither here nor in the object store, and OSError where it cannot be written.
    """
    settings = shipped.settings
    if _is_there(settings.bundle, shipped.manifest):
        return settings
    if not shipped.files:
        raise BundleError(f"{settings.bundle}: is not the driver's bundle on this node; put it on a path that all nodes share")
    cache = settings.cache_dir or default_cache_dir()
    require_private(cache)
    folder = cache / "bundles" / shipped.manifest
    make_private(folder.parent)
    with FileLock(folder.parent / f"{shipped.manifest}.lock"):
        if not _is_there(folder, shipped.manifest):
            _write(folder, shipped)
    return replace(settings, bundle=folder)


def _is_there(folder: Path, manifest: str) -> bool:
    # The other files are checked against the manifest when the bundle is opened.
    try:
        return hashlib.sha256(read_bounded(folder / MANIFEST, _MOST_FILE_BYTES)).hexdigest() == manifest
    except OSError:
        return False


def _write(folder: Path, shipped: Shipped) -> None:
    import ray

    make_private(folder)
    # The manifest last: a folder that has it has the rest.
    for name in sorted(shipped.files, key=lambda name: name == MANIFEST):
        with replacing(folder / name, PRIVATE) as temporary:
            temporary.write_bytes(ray.get(shipped.files[name]))
