"""The checkpoints that our own training saves: one `.safetensors` file, with everything besides the weights in its header.

Tensors have the PyTorch model's own names (`visual.*`, `text.*`, `svfr.*`, `gmc.*`, `head.*`). The header's entry
`sigrl_deploy` is JSON: the model's config with its preprocessing and template, so that an export has to ask for nothing; the
labels it was trained on; and a record of the training.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sigrl_deploy.checkpoints.weights import MAX_HEADER, open_safetensors
from sigrl_deploy.config import ModelConfig
from sigrl_deploy.errors import CheckpointError
from sigrl_deploy.files import replacing
from sigrl_deploy.image_towers import VIT
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.structs import Checked

if TYPE_CHECKING:
    from torch import Tensor

HEADER = "sigrl_deploy"
FORMAT_VERSION = 1
HEAD = "head."  # tensors of the loss (scale and bias of the scores), which inference does not use


class TrainedRecord(Checked, frozen=True):
    """The header of a trained checkpoint. `labels` are those it was trained on, in order; `training` is for people to read.

    Raises ValueError where its parts do not fit each other.
    """

    config: ModelConfig
    template: str
    preprocess: Preprocess
    labels: tuple[str, ...] = ()
    training: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.preprocess.image_size != self.config.vision.image_size:
            sizes = f"{self.preprocess.image_size}, expected the model's {self.config.vision.image_size}"
            raise ValueError(f"preprocess.image_size is {sizes}")
        if sum(map(len, self.labels)) > MAX_HEADER // 2:
            raise ValueError(f"its {len(self.labels)} labels are more than a header holds ({MAX_HEADER // 2} characters)")
        if not self.template.isprintable() or self.template.count("{label}") != 1:
            raise ValueError(f"template is {reprlib.repr(self.template)}, expected one line with {{label}} in it, once")

    def to_json(self) -> str:
        values = self.to_plain()
        if values["config"]["vision"]["tower"] == VIT:  # which releases before other towers do not name
            del values["config"]["vision"]["tower"]
        return json.dumps(values | {"format_version": FORMAT_VERSION}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, path: Path) -> TrainedRecord:
        """The inverse of `to_json`. Raises CheckpointError where the header is damaged or of another format version."""
        try:
            values = json.loads(text)
            version = values.pop("format_version")
            values["config"]["vision"].setdefault("tower", VIT)
            if type(version) is int and version == FORMAT_VERSION:
                return cls.from_plain(values)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: its header cannot be read ({error}); copy the checkpoint again") from None
        raise CheckpointError(
            f"{path}: format version {reprlib.repr(version)}, this release reads version {FORMAT_VERSION}; "
            "install the release that wrote the checkpoint"
        )


def read_record(path: Path) -> TrainedRecord | None:
    """The record of a checkpoint that our training saved; None for any other file.

    Raises CheckpointError where the record is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    from safetensors import SafetensorError

    try:
        with open_safetensors(path) as file:
            header = (file.metadata() or {}).get(HEADER)
    except (CheckpointError, OSError, SafetensorError):
        return None  # reading the weights reports what is wrong
    return None if header is None else TrainedRecord.from_json(header, path)


def write_trained(path: Path, record: TrainedRecord, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint, whole or not at all. Raises OSError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                temporary,
                {HEADER: record.to_json()},
            )
        except SafetensorError as error:  # safetensors wraps the operating system's errors in it
            raise OSError(str(error)) from None
        temporary.chmod(mode)  # safetensors makes the file readable by its owner alone
