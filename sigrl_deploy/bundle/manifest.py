"""The manifest of a bundle: what it holds, and how to use it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from sigrl_deploy.bundle.engine_records import EngineRecord
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.errors import BundleError, ExportError, printable
from sigrl_deploy.files import read_bounded, replacing
from sigrl_deploy.pictures.preprocess import Preprocess

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
VOCABULARY = "vocabulary.npz"
LOCK = ".lock"  # begins the names of lock files, which may stay in a bundle

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_MOST_MANIFEST_BYTES = 1 << 24
GRAPH = ".onnx"
# Of what would take much memory, or mean nothing; `Preprocess` bounds the image size.
_LARGEST = {"embed_dim": 1 << 14, "image_size": 1 << 12, "patch_size": 1 << 12, "topk": 1 << 16}
_LONGEST_CONTEXT = 1 << 10


@dataclass(frozen=True)
class Variant:
    """One precision of the two graphs. `text` is None where nothing is left to compute on the text side; `weights` is the same
    model for the PyTorch engine, where export was asked for it.

    `parity` is what export measured against the eager fp32 model: backend, cases, largest errors, agreement.
    """

    visual: str
    text: str | None
    weights: str | None = None
    parity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and how to use it.

    `context_length` is None where the bundle has no text tower and so only its own vocabulary. `files` maps the name of every
    file that may be read to its sha256, but for what came after the export and brings its own:
    `engines` of TensorRT, each with its own sha256, since one that is damaged can be built again; and what `verify` measured.
    """

    arch: Arch
    embed_dim: int
    image_size: int
    patch_size: int
    topk: int
    template: str
    context_length: int | None
    preprocess: Preprocess
    variants: dict[Precision, Variant]  # the one that runs by default first
    files: dict[str, str]
    source: dict[str, Any]
    tools: dict[str, str]
    created: str
    engines: tuple[EngineRecord, ...] = ()
    verified: tuple[dict[str, Any], ...] = ()

    def check(self) -> None:
        """Raise ValueError for values that mean nothing: a damaged manifest is found here, not at the first picture."""
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise ValueError(f"{name} is {value!r}, expected a whole number from 1 to {largest}")
        if self.image_size != self.preprocess.image_size or self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} fits neither preprocessing nor patch_size {self.patch_size}")
        if self.context_length is not None and (
            type(self.context_length) is not int or not 3 <= self.context_length <= _LONGEST_CONTEXT
        ):
            raise ValueError(f"context_length is {self.context_length!r}, expected a whole number from 3 to {_LONGEST_CONTEXT}")
        template = self.template
        if not isinstance(template, str) or "{label}" not in template or len(template) > 1000 or not template.isprintable():
            raise ValueError(f"template is {str(template)[:100]!r}, expected a line of text with {{label}} in it")
        self._check_files()

    def _check_files(self) -> None:
        if not self.variants or not all(isinstance(v.visual, str) for v in self.variants.values()):
            raise ValueError("it holds no variant")
        needs_text = self.context_length is not None or self.arch.has_graph
        if needs_text and not all(isinstance(v.text, str) for v in self.variants.values()):
            raise ValueError("a variant has no text graph")
        graphs = [name for v in self.variants.values() for name in (v.visual, v.text) if name is not None]
        if not all(name.endswith(GRAPH) for name in graphs):
            raise ValueError(f"its graphs are {', '.join(graphs)[:100]}, expected names that end in {GRAPH}")
        parts = [name for v in self.variants.values() for name in (v.visual, v.text, v.weights) if name is not None]
        for name in (*self.files, *(record.file for record in self.engines)):
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{name[:100]!r} is no name of a bundle's file")
        for name in (VOCABULARY if self.context_length is None else TOKENIZER, *parts):
            if name not in self.files:
                raise ValueError(f"{name} is missing from its files")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    def to_json(self) -> str:
        values = asdict(self) | {
            "format_version": FORMAT_VERSION,
            "preprocess": self.preprocess.to_dict(),
            "variants": {precision.value: asdict(variant) for precision, variant in self.variants.items()},
            "engines": [record.to_dict() for record in self.engines],
        }
        return json.dumps(values, indent=2) + "\n"


def change_manifest(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Replace a bundle's manifest by what `change` makes of the present one; processes that do so take turns.

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
    path = folder / MANIFEST
    try:
        values = json.loads(read_bounded(path, _MOST_MANIFEST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        missing = "is a file, and no bundle" if os.path.isfile(folder) else "no such folder"
        problem = f"no {MANIFEST} there, so it is no bundle" if os.path.isdir(folder) else missing
        raise BundleError(f"{folder}: {problem}; give the folder that export/to_onnx.py wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{path}: cannot be read ({reason}); copy the bundle again, or export it again") from None
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {printable(str(version)[:100])}, this release reads version {FORMAT_VERSION}; "
            "export the checkpoint again, or install the release that wrote the bundle"
        )
    try:
        if not isinstance(values["files"], dict):
            raise ValueError("files is no mapping of names to hashes")
        values["arch"] = Arch(values["arch"])
        values["preprocess"] = Preprocess.from_dict(values["preprocess"])
        values["variants"] = {Precision(key): Variant(**value) for key, value in values["variants"].items()}
        values["engines"] = tuple(EngineRecord.from_dict(record) for record in values.get("engines", ()))
        values["verified"] = tuple(dict(entry) for entry in values.get("verified", ()))
        manifest = Manifest(**values)
        manifest.check()
        return manifest
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path}: not a complete manifest ({printable(str(error))}); export the checkpoint again") from None
