"""The exported folder: a manifest, typed ONNX files, the tokenizer, and a vocabulary where the export was given one.

A bundle is all that a deployment needs: no checkpoint, no torch, no network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.errors import BundleError, ExportError, UsageError
from sigrl_deploy.files import replacing, sha256_file
from sigrl_deploy.preprocess import Preprocess
from sigrl_deploy.tensorrt.key import EngineRecord

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
VOCABULARY = "vocabulary.npz"
LOCK = ".lock"  # begins the names of lock files, which may stay in a bundle


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

    `text_identity` is a digest of the text tower's weights, `graph_identity` of GMC's and of the projection that follows it
    (None without a label graph): with the template, the keys of the vocabulary cache. `context_length` is None where the bundle
    has no text tower and so only its own vocabulary. `files` maps every file's name to its sha256. What came after the export:
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
    text_identity: str
    graph_identity: str | None
    variants: dict[Precision, Variant]  # the one that runs by default first
    files: dict[str, str]
    source: dict[str, Any]
    tools: dict[str, str]
    created: str
    engines: tuple[EngineRecord, ...] = ()
    verified: tuple[dict[str, Any], ...] = ()

    def check(self) -> None:
        """Raise ValueError for values that mean nothing: a damaged manifest is found here, not at the first picture."""
        for name in ("embed_dim", "image_size", "patch_size", "topk"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a whole number above 0")
        if self.image_size != self.preprocess.image_size or self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} fits neither preprocessing nor patch_size {self.patch_size}")
        if type(self.context_length) is not int and not (self.context_length is None and VOCABULARY in self.files):
            raise ValueError(f"context_length is {self.context_length!r}, expected a whole number, or a {VOCABULARY}")
        if not isinstance(self.template, str) or "{label}" not in self.template:
            raise ValueError(f"template is {self.template!r}, expected text with {{label}} in it")
        if not isinstance(self.text_identity, str) or isinstance(self.graph_identity, str) is not self.arch.has_graph:
            raise ValueError("text_identity and graph_identity are not those of the architecture")
        if not self.variants or not all(isinstance(v.visual, str) for v in self.variants.values()):
            raise ValueError("it holds no variant")
        needs_text = self.context_length is not None or self.arch.has_graph
        if needs_text and not all(isinstance(v.text, str) for v in self.variants.values()):
            raise ValueError("a variant has no text graph")

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


class Bundle:
    """An opened bundle: its files are there and are what the manifest says.

    Raises BundleError where the folder is no bundle, of another format version, incomplete or changed since export.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        for name, digest in self.manifest.files.items():
            if sha256_file(self.file(name)) != digest:
                raise BundleError(
                    f"{self.path / name}: differs from the manifest's sha256; copy the bundle again, or export it again"
                )

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files. Raises BundleError where it is missing or its name leads out of the folder."""
        path = self._inside(name)
        if name not in self.manifest.files or not path.is_file():
            raise BundleError(f"{path}: missing from the bundle; copy the whole folder again, or export it again")
        return path

    def engine_path(self, record: EngineRecord) -> Path:
        """Where a TensorRT engine lies; whether it is whole its user finds out. Raises BundleError as `file` does."""
        return self._inside(record.file)

    def _inside(self, name: str) -> Path:
        if name in ("", ".", "..") or "\0" in name or Path(name).name != name or "\\" in name:
            raise BundleError(f"{self.path / MANIFEST}: names {name!r}, a file outside the bundle; do not use this bundle")
        return self.path / name

    def precisions(self, asked: Precision | None) -> list[Precision]:
        """The precision asked for, or all, the default first. Raises UsageError where the bundle was exported without it."""
        held = list(self.manifest.variants)
        if asked is None:
            return held
        if asked not in held:
            names = ", ".join(precision.value for precision in held)
            raise UsageError(f"--precision {asked.value}: {self.path} holds only {names}; take that, or export again")
        return [asked]

    def has(self, name: str) -> bool:
        return name in self.manifest.files


def change_manifest(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Replace a bundle's manifest by what `change` makes of the present one; processes that do so take turns.

    Raises ExportError where it cannot be written.
    """
    try:
        with FileLock(folder / f"{LOCK}-manifest"), replacing(folder / MANIFEST) as temporary:
            temporary.write_text(change(_read_manifest(folder)).to_json(), encoding="utf-8")
    except OSError as error:
        raise ExportError(
            f"{folder / MANIFEST}: cannot be written ({error.strerror or error}); copy the bundle where it can be written"
        ) from None


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder}: no {MANIFEST} there, so it is no bundle; give the folder that export/to_onnx.py wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); copy the bundle again, or export it again") from None
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {version}, this release reads version {FORMAT_VERSION}; "
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
        raise BundleError(f"{path}: not a complete manifest ({error}); export the checkpoint again") from None
