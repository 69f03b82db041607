"""The rows that SCPNet matches pictures with, from its checkpoint and from what training was given besides."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.building import collect
from sigrl_deploy.checkpoints.layouts import Checkpoint
from sigrl_deploy.checkpoints.options import SCPNetOptions
from sigrl_deploy.errors import CheckpointError, UsageError
from sigrl_deploy.files import DamagedFileError, read_array
from sigrl_deploy.image_towers import HEAD_WIDTH

if TYPE_CHECKING:
    from torch import Tensor

    from sigrl_deploy.model.scpnet import SCPNetLabels

OWN_SCALE = "clip"  # the checkpoint's own, exp(logit_scale)
_MOST_LABELS = 1 << 12
_DIAGONAL = 1e-3  # how far from 1 a label's relation to itself may be; in the published files it is 2e-6


@dataclass(frozen=True)
class Settings:
    """What no tensor shows; see `SCPNetOptions`."""

    sparse_topk: int
    reweight: float
    scale: float | str


# Of the published configurations, by data set, each with its number of labels.
PRESETS = {
    "coco": (80, Settings(62, 0.2, 10.0)),
    "voc": (20, Settings(20, 0.2, 10.0)),
    "nus-wide": (81, Settings(50, 0.2, OWN_SCALE)),
    "cub": (312, Settings(312, 0.2, 10.0)),
}


def label_count(checkpoint: Checkpoint) -> int:
    """C, the number of labels that a checkpoint was trained on. Raises CheckpointError where it is too large."""
    count = checkpoint.shape("labels.token_prefix", 3)[0]
    if count > _MOST_LABELS:
        name = checkpoint.label("labels.token_prefix")
        raise CheckpointError(f"{checkpoint.path}: tensor {name} is for {count} labels, expected {_MOST_LABELS} at most")
    return count


def settings_of(options: SCPNetOptions, labels: int) -> Settings:
    """The settings that options name, each by itself or by a preset. Raises UsageError where one is missing or impossible."""
    usual: dict[str, Any] = {}
    if options.preset is not None:
        count, preset = PRESETS.get(options.preset, (labels, None))
        if preset is None:
            raise UsageError(f"expected one of {', '.join(PRESETS)}", argument="preset", value=options.preset)
        if count != labels:
            problem = f"is for {count} labels, and the checkpoint has {labels}; give another, or `sparse_topk` and the others"
            raise UsageError(problem, argument="preset", value=options.preset)
        usual = asdict(preset)
    values = usual | options.given
    missing = [name for name in ("sparse_topk", "reweight", "scale") if name not in values]
    if missing:
        fitting = [f"`preset='{name}'`" for name, (count, _) in PRESETS.items() if count == labels]
        advice = f"or {fitting[0]} for what was published" if fitting else f"since nothing published has {labels} labels"
        problem = f"is not in an SCPNet checkpoint; give `sparse_topk`, `reweight` and `scale` as in training, {advice}"
        raise UsageError(problem, argument=missing[0])
    topk, reweight, scale = (values[name] for name in ("sparse_topk", "reweight", "scale"))
    if not 2 <= topk <= labels:
        problem = f"expected 2 to {labels}: a label counts itself, and needs a neighbour"
        raise UsageError(problem, argument="sparse_topk", value=topk)
    if not 0 < reweight < 1:
        raise UsageError("expected a share between 0 and 1", argument="reweight", value=reweight)
    return Settings(topk, reweight, _scale(scale))


def _scale(value: float | str) -> float | str:
    if value == OWN_SCALE:
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(f"expected a number above 0, or {OWN_SCALE}", argument="scale", value=value)
    return number


def label_rows(checkpoint: Checkpoint, options: SCPNetOptions) -> Tensor:
    """s · L [C, D] fp32, L the rows of unit length that pictures are compared with, in the order of training.

    Raises UsageError for options that are missing or do not fit the checkpoint, CheckpointError for tensors that do not.
    """
    import torch

    from sigrl_deploy.model.scpnet import label_graph

    count = label_count(checkpoint)
    settings = settings_of(options, count)
    graph = label_graph(torch.from_numpy(_relation(options, count)), settings.sparse_topk, settings.reweight)
    if not graph.isfinite().all():
        problem = "has a label that is related to none of its nearest; give the file that training used"
        raise UsageError(problem, argument="relation", value=options.relation)
    with torch.inference_mode():
        scale = _own_scale(checkpoint) if settings.scale == OWN_SCALE else float(settings.scale)
        rows: Tensor = _label_side(checkpoint, count)(graph) * scale
    return rows.clone()  # an inference tensor could not be exported


def _relation(options: SCPNetOptions, labels: int) -> FloatArray:
    """The relation file [C, C] fp32."""
    path = options.relation
    if path is None:
        problem = "is not in an SCPNet checkpoint; give the .npy file that training used (relation+voc.npy)"
        raise UsageError(problem, argument="relation")
    try:
        values = read_array(path, 8 * _MOST_LABELS**2 + 1024)
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error}); expected a .npy file"
        raise UsageError(problem, argument="relation", value=path) from None
    except DamagedFileError:
        raise UsageError("is damaged, or no .npy file; copy it again", argument="relation", value=path) from None
    if values.shape != (labels, labels) or values.dtype.kind != "f":
        held = f"{list(values.shape)} of {values.dtype}"
        problem = f"holds {held}, expected floats [{labels}, {labels}], as the checkpoint has labels"
        raise UsageError(problem, argument="relation", value=path)
    if not np.isfinite(values).all() or not np.allclose(np.diagonal(values), 1, rtol=0, atol=_DIAGONAL):
        problem = "is no table of how related labels are: expected finite numbers, and 1 on the diagonal"
        raise UsageError(problem, argument="relation", value=path)
    return values.astype(np.float32)


def _label_side(checkpoint: Checkpoint, count: int) -> SCPNetLabels:
    import torch

    from sigrl_deploy.model.scpnet import SCPNetLabels

    width, embed_dim = checkpoint.shape("labels.text_projection", 2)
    if width % HEAD_WIDTH:
        name = checkpoint.label("labels.text_projection")
        raise CheckpointError(f"{checkpoint.path}: tensor {name} is of width {width}, expected a multiple of {HEAD_WIDTH}")
    hidden = checkpoint.shape("labels.gc1.weight", 2)[1]
    with torch.device("meta"):
        side = SCPNetLabels(count, width, checkpoint.count("labels.transformer.resblocks."), embed_dim, hidden)
    expected = {f"labels.{name}": tensor for name, tensor in side.state_dict().items()}
    tensors = collect(checkpoint, expected)
    side.load_state_dict({name.removeprefix("labels."): tensor for name, tensor in tensors.items()}, assign=True)
    return side.eval().requires_grad_(False)


def _own_scale(checkpoint: Checkpoint) -> float:
    stored = checkpoint.tensors.get("logit_scale")
    if stored is None or stored.shape != () or not stored.is_float:
        held = "is missing" if stored is None else f"is {stored.dtype} of shape {list(stored.shape)}"
        raise CheckpointError(f"{checkpoint.path}: tensor logit_scale {held}, expected one number; give `scale` as one")
    scale = math.exp(min(float(stored.read()), 100))
    if not scale < 1e6:
        raise CheckpointError(
            f"{checkpoint.path}: tensor logit_scale gives a scale of {scale:g}, expected that of CLIP's training"
        )
    return scale
