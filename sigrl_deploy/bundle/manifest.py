"""The manifest of a bundle: what it holds, and how to use it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from filelock import FileLock
from msgspec import Meta

from sigrl_deploy.bundle.engine_records import EngineRecord, FileName, Sha256
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.errors import BundleError, ExportError, UsageError, printable
from sigrl_deploy.files import read_bounded, replacing
from sigrl_deploy.image_towers import Size, Width
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.structs import Checked

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
VOCABULARY = "vocabulary.npz"
LOCK = ".lock"  # begins the names of lock files, which may stay in a bundle
GRAPH = ".onnx"  # ends the names of graphs, whose external files are looked up by it

_MOST_MANIFEST_BYTES = 1 << 24
# What version 2 holds beside version 3: digests of weights, which were cache keys before the hashes of files were.
_FORMAT_2_FIELDS = ("text_identity", "graph_identity")


class Variant(Checked, frozen=True):
    """One precision of the two graphs.

    `text` is None where nothing is left to compute on the text side. `weights` is the same model for the PyTorch engine, where
    export was asked for it. `parity` is what export measured against the PyTorch model in fp32: backend, cases, largest errors,
    agreement.
    """

    visual: FileName
    text: FileName | None
    weights: FileName | None = None
    parity: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.visual, self.text):
            if name is not None and not name.endswith(GRAPH):
                raise ValueError(f"its graph is {name[:100]!r}, expected a name that ends in {GRAPH}")

    @property
    def files(self) -> list[str]:
        """Names of the files that this precision needs."""
        return [name for name in (self.visual, self.text, self.weights) if name is not None]


class Manifest(Checked, frozen=True):
    """What a bundle holds and how to use it.

    `context_length` is None where the bundle has no text tower and so only its own vocabulary. `files` maps the name of every
    file that may be read to its sha256. `groups` is P where local features are no patches. The TensorRT `engines`, which are
    added after the export, are not among the files: each has a sha256 of its own, since a damaged one can be built again.
    `verified` is what `sigrl-deploy verify` measured.

    Raises ValueError for values that contradict each other: a damaged manifest is found here, not at the first picture.
    """

    arch: Arch
    embed_dim: Width
    image_size: Size
    patch_size: Size
    topk: Size
    template: Annotated[str, Meta(max_length=1000)]
    context_length: Annotated[int, Meta(ge=3, le=1 << 10)] | None
    preprocess: Preprocess
    variants: dict[Precision, Variant]  # the one that runs by default first
    files: dict[FileName, Sha256]
    source: dict[str, Any]
    tools: dict[str, str]
    created: str
    groups: Size | None = None
    engines: tuple[EngineRecord, ...] = ()
    verified: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.image_size != self.preprocess.image_size or self.image_size < self.patch_size:
            sizes = f"preprocess.image_size {self.preprocess.image_size} and patch_size {self.patch_size}"
            raise ValueError(f"image_size is {self.image_size}, which does not fit {sizes}")
        if "{label}" not in self.template or not self.template.isprintable():
            raise ValueError(f"template is {self.template[:100]!r}, expected one line of text with {{label}} in it")
        if not self.variants:
            raise ValueError("variants is empty, expected at least one precision")
        needs_text = self.context_length is not None or self.arch.has_graph
        for precision, variant in self.variants.items():
            if needs_text and variant.text is None:
                raise ValueError(f"variants.{precision.value} has no text graph")
        needed = [VOCABULARY if self.context_length is None else TOKENIZER]
        for name in needed + [name for variant in self.variants.values() for name in variant.files]:
            if name not in self.files:
                raise ValueError(f"{name} is missing from its files")

    @property
    def local_features(self) -> int:
        """P, how many local features a picture has."""
        rows, columns = self.grid
        return self.groups or rows * columns

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    def to_json(self) -> str:
        values = self.to_plain()
        if self.groups is None:  # releases that know no groups open the bundle too
            del values["groups"]
        return json.dumps(values | {"format_version": FORMAT_VERSION}, indent=2) + "\n"


def change_manifest(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Replace a bundle's manifest by what `change` makes of the present one, in the newest format; processes take turns.

    Raises ExportError where it cannot be written.
    """
    try:
        with FileLock(folder / f"{LOCK}-manifest"), replacing(folder / MANIFEST) as temporary:
            temporary.write_text(change(read_manifest(folder)).to_json(), encoding="utf-8")
    except OSError as error:
        raise ExportError(
            f"{folder / MANIFEST}: cannot be written ({error.strerror or error}); copy the bundle where it can be written"
        ) from None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle of format version 3, or 2, whose graphs are the same.

    Raises UsageError where there is no such folder, BundleError where it holds no manifest, or a damaged one or one of another
    version.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(read_bounded(path, _MOST_MANIFEST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.exists(folder):
            raise UsageError("no such folder; expected a bundle", argument="bundle", value=folder) from None
        problem = f"holds no {MANIFEST}, so it is not a bundle" if os.path.isdir(folder) else "is a file, not a bundle's folder"
        raise BundleError(f"{folder}: {problem}; give the folder that export wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{path}: cannot be read ({reason}); copy the bundle again, or export it again") from None
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if type(version) is int and version == 2:
        values = {name: value for name, value in values.items() if name not in _FORMAT_2_FIELDS}
    elif type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {printable(str(version)[:100])}, this release reads versions 2 and {FORMAT_VERSION}; "
            "export the checkpoint again, or install the release that wrote the bundle"
        )
    try:
        return Manifest.from_plain(values)
    except ValueError as error:
        raise BundleError(f"{path}: is not a valid manifest ({error}); export the checkpoint again") from None
