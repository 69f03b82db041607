"""open_clip's own weights, named `NAME:PRETRAINED`: from its cache, or downloaded."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from sigrl_deploy.architectures import Contract
from sigrl_deploy.checkpoints.layouts import Checkpoint, load_checkpoint
from sigrl_deploy.checkpoints.model_config import checkpoint_shapes
from sigrl_deploy.checkpoints.open_clip_configs import ClipConfig, clip_config
from sigrl_deploy.errors import CheckpointError, UsageError
from sigrl_deploy.pictures.preprocess import Preprocess

_NAMES = "NAME:PRETRAINED as open_clip lists them (ViT-B-16:openai)"
NAMED = f"a file, or {_NAMES}"
_OPENAI = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
_TIMEOUT = 20.0  # seconds until a server answers


def check_source(source: str | Path, argument: str = "checkpoint") -> None:
    """Raise UsageError where there is no such file, before anything that takes seconds."""
    if not is_pretrained(source) and not os.path.isfile(source):
        problem = "is a folder, pipe or device" if os.path.exists(source) else "no such file"
        expected = f"expected a .pth, .pt or .safetensors checkpoint, or {_NAMES}"
        raise UsageError(f"{problem}; {expected}", argument=argument, value=source)


def is_pretrained(source: str | Path) -> bool:
    """Whether `source` is of the form `NAME:PRETRAINED`, and there is no file of that name."""
    return ":" in str(source) and not os.path.exists(source)


def default_bundle(source: Path) -> Path:
    """The default place for a checkpoint's bundle: beside the file, or for NAME:PRETRAINED in the current folder."""
    if not is_pretrained(source):
        return source.with_name(f"{source.stem}-bundle")
    name, _, pretrained = str(source).partition(":")
    return Path(f"{name}-{Path(pretrained).name}-bundle")


def load_pretrained(value: str, argument: str = "checkpoint") -> tuple[Checkpoint, ClipConfig]:
    """Weights named as open_clip lists them, such as `ViT-B-16:openai`, and their config.

    `argument` is the one that errors name. Raises UsageError for a name that open_clip does not know, CheckpointError where the
    weights are neither in its cache nor can be downloaded.
    """
    import open_clip

    name, _, pretrained = value.partition(":")
    listed = _listed(value)
    clip = clip_config(value if listed else name) if name in open_clip.list_models() else None
    if clip is None:
        problem = f"no such file, and open_clip has no model {name}; expected a file, or NAME:PRETRAINED as in ViT-B-16:openai"
        raise UsageError(problem, argument=argument, value=value)
    path = Path(pretrained) if not listed and os.path.exists(pretrained) else _download(value, listed, argument)
    return dataclasses.replace(load_checkpoint(path), path=value), clip


def listed_preprocess(value: str, image_size: int) -> Preprocess | None:
    """How open_clip prepares pictures for the weights that it lists as `value`; None where it lists none.

    Nearly all have OpenAI's preprocessing, but ViT-L-14:laion2b_s32b_b82k its own mean, and ViT-H-14:dfn5b no crop.
    """
    listed = _listed(value)
    if not listed:
        return None
    squashed = listed["resize_mode"] == "squash"
    return replace(
        Preprocess.for_contract(Contract.CLIP, image_size),
        mean=tuple(listed["mean"]),
        std=tuple(listed["std"]),
        interpolation=listed["interpolation"],
        resize_mode="squash" if squashed else "short-side",
        finish="tensor-bilinear" if squashed else "center-crop",  # which changes nothing at this size
    )


def _listed(value: str) -> dict[str, Any]:
    """What open_clip lists of `NAME:PRETRAINED`, or nothing."""
    import open_clip

    name, _, pretrained = value.partition(":")
    return open_clip.get_pretrained_cfg(name, pretrained) or {}


def openai_name(checkpoint: Checkpoint) -> str | None:
    """`NAME:openai` of the OpenAI model whose ViT has the checkpoint's sizes; None where none has.

    A model of the same resolution is preferred.
    """
    shapes = checkpoint_shapes(checkpoint)
    grid = shapes.pop("vision.grid", 0)
    ours = {name: config for name in _OPENAI if (config := clip_config(name))}
    fitting = {
        name: config
        for name, config in ours.items()
        if shapes
        == {
            "embed_dim": config.embed_dim,
            "vision.patch_size": config.vit.patch_size,
            "vision.width": config.vit.width,
            "vision.layers": config.vit.layers,
        }
    }
    names = sorted(fitting, key=lambda name: fitting[name].vit.grid != grid)
    return f"{names[0]}:openai" if names else None


def _download(value: str, listed: dict[str, Any], argument: str) -> Path:
    import open_clip

    if not listed:
        advice = "choose one of open_clip.list_pretrained(), or give a file"
        raise UsageError(f"open_clip lists no such weights; {advice}", argument=argument, value=value)
    problem = _hub_problem() if listed.get("hf_hub") else ""
    try:
        with _quiet(), _patient(offline=bool(problem)):
            return Path(open_clip.download_pretrained(listed))
    except Exception as error:  # network, hub and file errors of several libraries
        reason = problem or next(iter(str(error).strip().splitlines()), type(error).__name__)
        advice = f"fetch that file by other means, and give its path with `clip_config='{value}'`"
        problem = f"{_file_of(listed)} cannot be downloaded: {reason}; {advice}"
        raise CheckpointError(problem, argument=argument, value=value) from None


def _file_of(listed: dict[str, Any]) -> str:
    """The file that open_clip would download, and from where."""
    from open_clip import constants

    if not listed.get("hf_hub"):
        return str(listed.get("url"))
    repository, file = os.path.split(listed["hf_hub"])
    # Either holds the same weights; open_clip asks for the first one first.
    files = file or f"{constants.HF_SAFE_WEIGHTS_NAME} or {constants.HF_WEIGHTS_NAME}"
    return f"{files} of https://huggingface.co/{repository}"


def _hub_problem() -> str:
    """Why the hub cannot be reached, or "". Its own client would try five times for each of several file names."""
    from huggingface_hub import constants

    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_TIMEOUT):
            return ""
    except urllib.error.HTTPError:  # which is an answer
        return ""
    except (OSError, ValueError) as error:
        return f"{constants.ENDPOINT} cannot be reached: {getattr(error, 'reason', error)}"


@contextmanager
def _patient(offline: bool) -> Iterator[None]:
    """Connections time out where nobody answers. Offline, the hub's client uses its cache alone."""
    from huggingface_hub import constants

    before = socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE
    socket.setdefaulttimeout(_TIMEOUT)
    constants.HF_HUB_OFFLINE = offline or constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        socket.setdefaulttimeout(before[0])
        constants.HF_HUB_OFFLINE = before[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """No logs or warnings of open_clip and the hub's client, whose exceptions say the same."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
