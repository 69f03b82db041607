"""The exported folder: a manifest, typed ONNX files, the tokenizer, and a vocabulary where the export was given one.

A bundle is all that a deployment needs: no checkpoint, no torch, no network.
"""

from __future__ import annotations

from pathlib import Path

from sigrl_deploy.bundle.engine_records import EngineRecord
from sigrl_deploy.bundle.external_data import external_files
from sigrl_deploy.bundle.manifest import GRAPH, TOKENIZER, VOCABULARY, read_manifest
from sigrl_deploy.config import Precision
from sigrl_deploy.errors import BundleError, UsageError
from sigrl_deploy.files import sha256_file


class Bundle:
    """An opened bundle, whose files are all there and have the hashes that the manifest lists.

    With `graphs` False the graphs and their weights may be missing, because they run elsewhere; they are not read.

    Raises BundleError where the folder is not a bundle, has an unknown format version, is incomplete, or was changed since the
    export.
    """

    def __init__(self, path: str | Path, graphs: bool = True) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._external: dict[str, set[str]] = {}
        read = [name for name in self.manifest.files if graphs or name in (TOKENIZER, VOCABULARY)]
        self._elsewhere = set(self.manifest.files) - set(read)
        for name in read:
            path, digest = self.file(name), self.manifest.files[name]
            try:
                if sha256_file(path) != digest:
                    raise BundleError(f"{path}: differs from the manifest's sha256; copy the bundle again, or export it again")
                if path.suffix == GRAPH:
                    self._external[name] = self._external_files(path)
            except OSError as error:
                raise BundleError(f"{path}: cannot be read ({error.strerror or error}); copy the bundle again") from None

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files. Raises BundleError where it is missing or not a file.

        Of a graph that runs elsewhere it is where it would be.
        """
        path = self.path / name
        if name not in self.manifest.files or not (path.is_file() or name in self._elsewhere):
            raise BundleError(f"{path}: missing from the bundle; copy the whole folder again, or export it again")
        return path

    def digests(self, name: str) -> tuple[str, ...]:
        """The sha256 of one of the bundle's files, followed by those of the files that hold its weights."""
        return tuple(self.manifest.files[part] for part in self.parts(name))

    def parts(self, name: str) -> tuple[str, ...]:
        """One of the bundle's files, followed by those that hold its weights.

        A graph that runs elsewhere cannot be asked for those: all that run elsewhere take their place.
        """
        others = self._elsewhere - {name} if name in self._elsewhere else self._external.get(name, ())
        return (name, *sorted(others))

    def _external_files(self, path: Path) -> set[str]:
        """Names of the files that an ONNX file refers to. Its reader opens them too, so the manifest must list their hashes."""
        try:
            locations = external_files(path)
        except ValueError as error:
            raise BundleError(f"{path}: cannot be used ({error}); export the bundle again") from None
        for location in locations - set(self.manifest.files):
            raise BundleError(
                f"{path}: reads weights from {location!r}, which the manifest does not list; do not use this bundle"
            )
        return locations

    def engine_path(self, record: EngineRecord) -> Path:
        """Where a TensorRT engine lies. The file may be missing or damaged, which `tensorrt.find` checks."""
        return self.path / record.file

    def precisions(self, asked: Precision | None) -> list[Precision]:
        """The precision asked for, or for None all that the bundle holds, the default first.

        Raises UsageError where the bundle was exported without it.
        """
        held = list(self.manifest.variants)
        if asked is None:
            return held
        if asked not in held:
            names = ", ".join(precision.value for precision in held)
            problem = f"{self.path} holds only {names}; use one that it holds, or export the checkpoint again"
            raise UsageError(problem, argument="precision", value=asked.value)
        return [asked]

    def has(self, name: str) -> bool:
        return name in self.manifest.files
