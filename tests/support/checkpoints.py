"""Tiny checkpoints in every layout, for the tests that load them."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.random_weights import Variant, draw, images, label_embeddings, sigrl_shapes, text_shapes, vision_shapes
from sigrl_deploy.checkpoints.building import add_text_tower, build_model
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.model_config import model_config
from sigrl_deploy.checkpoints.open_clip_configs import clip_config
from sigrl_deploy.config import Arch
from sigrl_deploy.model.sigrl import SigRL

# Twice the same fp32 arithmetic over a few layers: only the order of sums may differ.
TOLERANCE = 1e-5
TINY = Variant(layers=1, width=64, image_size=48, text_layers=1, text_width=64, vocabulary=50)
State = dict[str, torch.Tensor]


def state(shapes: dict[str, tuple[int, ...]]) -> State:
    return {name: drawn(name, shape) for name, shape in shapes.items()}


@cache
def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Shared by all tests, which change names and not numbers."""
    return torch.from_numpy(draw(name, shape))


def sigrl() -> State:
    return state(sigrl_shapes(TINY))


def mkt(variant: Variant = TINY) -> State:
    return state(vision_shapes(variant))


def text() -> State:
    return state(text_shapes(TINY))


def clip_of(vision: State, text_tower: State) -> State:
    """OpenAI's layout from the two towers."""
    named = {"visual.proj" if name == "projection_dist" else f"visual.{name}": value for name, value in vision.items()}
    return {**named, **text_tower, "logit_scale": torch.tensor(4.6)}


def openai() -> State:
    return clip_of(mkt(), text()) | {
        "input_resolution": torch.tensor(48),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(50),
    }


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def loaded(path: Path, arch: Arch | None = None, clip: str = "openai") -> SigRL:
    checkpoint = load_checkpoint(path)
    config = clip_config(clip)
    model = build_model(checkpoint, model_config(checkpoint, arch, clip=config))
    if checkpoint.has_text:
        add_text_tower(model, checkpoint, config)
    return model


def scores(model: SigRL) -> torch.Tensor:
    size = model.config.vision.image_size
    rows = torch.from_numpy(label_embeddings(6, seed=1)[:, : model.config.embed_dim].copy())
    with torch.no_grad():
        return model(torch.from_numpy(images(2, size, seed=2)), rows)


def token_ids(vocabulary: int = 50) -> torch.Tensor:
    ids = torch.from_numpy(np.random.RandomState(3).randint(1, vocabulary - 1, (3, 77)))
    ids[:, 9:] = 0
    ids[:, 8] = vocabulary - 1  # the end of text is the largest id
    return ids


def changed(values: State, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> State:
    """With another tensor of a name, or of all that begin as it does where it ends in *; None leaves them out."""
    names = [other for other in values if other.startswith(name[:-1])] if name.endswith("*") else [name]
    made = {other: change(values.get(other, torch.empty(0))) for other in names}
    return {other: value for other, value in (values | made).items() if value is not None}


def prefixed(prefix: str, values: State) -> State:
    return {prefix + name: value for name, value in values.items()}


class OpenAI(torch.nn.Module):
    """An archive of OpenAI's shape: a module tree with fp16 weights, its input resolution at the root."""

    def __init__(self, values: State) -> None:
        super().__init__()
        for name, value in values.items():
            *parents, last = name.split(".")
            module: torch.nn.Module = self
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            module.register_parameter(last, torch.nn.Parameter(value.half(), requires_grad=False))
        self.visual.input_resolution = 48
        self.register_buffer("input_resolution", torch.tensor(48))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.logit_scale


def archive(path: Path, module: torch.nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and OpenAI's files are nothing else
        torch.jit.trace(module, torch.ones(1)).save(str(path))
    return path
