"""The model that a run starts from: a CLIP checkpoint with new SigRL heads, a trained checkpoint, or an untrained CLIP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn import functional as F

from sigrl_deploy.architectures import Contract
from sigrl_deploy.checkpoints.layouts import OTHER_SYSTEMS, load_checkpoint
from sigrl_deploy.checkpoints.loading import CLIP_TOKENS, load_model
from sigrl_deploy.checkpoints.open_clip_configs import clip_config
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Arch, GraphConfig, ModelConfig
from sigrl_deploy.errors import UsageError, errors_about
from sigrl_deploy.files import sha256_file
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.training.recipes import TrainOptions

MIN_CAPTION = 16  # tokens of the longest caption of `scenes`
GRAPH_HEADS, GRAPH_HIDDEN = 4, 32  # of GMC's first layer; the second has one head as wide as the embedding


@dataclass(frozen=True)
class Start:
    """A model, how its pictures and labels are prepared, and its source: a digest, or the name of a config."""

    model: SigRL
    template: str
    preprocess: Preprocess
    source: str


def new_clip(config: str, template: str | None, contract: Contract) -> Start:
    """An untrained CLIP with an open_clip config, by name or as a JSON file. Raises UsageError for an unsuitable config."""
    clip = clip_config(config)
    if clip is None:
        raise UsageError("expected the name of an open_clip config or a .json file", argument="clip_config", value=config)
    if clip.text.vocab_size != CLIP_TOKENS or clip.text.context_length < MIN_CAPTION:
        raise UsageError(
            f"its text tower has {clip.text.vocab_size} tokens and a context of {clip.text.context_length}; expected "
            f"{CLIP_TOKENS} and at least {MIN_CAPTION}",
            argument="clip_config",
            value=config,
        )
    if not isinstance(clip.vision, VisionConfig):
        raise UsageError("describes a ResNet, and training needs a ViT; choose another", argument="clip_config", value=config)
    arch = Arch.CLIP
    model = SigRL(ModelConfig(arch, clip.embed_dim, arch.default_topk, clip.vision, clip.text))
    with torch.no_grad():
        model.vit.positional_embedding[1:] = places_of_patches(clip.vision.grid, clip.vision.width)
    return Start(
        model, template or Arch.SIGRL.default_template, Preprocess.for_contract(contract, clip.vision.image_size), config
    )


def places_of_patches(grid: int, width: int) -> Tensor:
    """The initial positional embedding of patches [grid², width]: sines and cosines of row and column.

    A small ViT learns faster from them than from random numbers ("Better plain ViT baselines", arXiv 2205.01580). Wavelengths
    are evenly spaced on a logarithmic scale, from four patches to four times the grid. Where `width` is not a multiple of four,
    the remaining columns are 0.
    """
    waves = max(1, width // 4)
    frequency = 2 * math.pi / (4 * torch.logspace(0, math.log10(max(grid, 2)), waves))
    angle = torch.arange(grid)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, 2 · waves]
    column, row = axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)
    both = 0.5 * torch.cat([column, row], dim=1)[:, :width]
    return F.pad(both, (0, width - both.shape[1]))


def start_from(options: TrainOptions, contract: Contract) -> Start:
    """The checkpoint `options.init` as the architecture to train, sigrl by default. SVFR and GMC are new where it has none.

    Pictures are prepared as the options say, else as the checkpoint records it, else by the recipe's `contract`. Raises as
    `load_model`.
    """
    assert options.init is not None
    arch = options.arch or Arch.SIGRL
    source = CheckpointOptions(
        options.init, text_tower=options.text_tower, topk=options.topk, clip_config=options.clip_config, preprocess=contract
    )
    with errors_about(checkpoint="init"):
        _require_trainable(options.init)
        loaded = load_model(source)
    base, record = loaded.model, loaded.checkpoint.record
    if not isinstance(base.config.vision, VisionConfig):
        raise UsageError("its image tower is a ResNet, and training needs a ViT", argument="init", value=options.init)
    preprocess = record.preprocess if record is not None and options.preprocess is None else loaded.preprocess
    continued = record is not None and record.config.arch is arch
    template = options.template or (record.template if record and continued else arch.default_template)
    topk = options.topk or (base.config.topk if continued else arch.default_topk)
    origin = sha256_file(Path(options.init)) if Path(options.init).is_file() else options.init
    return Start(as_arch(base, arch, topk), template, preprocess, origin)


def _require_trainable(init: str) -> None:
    """Raise UsageError for a checkpoint of a system that this package does not train."""
    path = Path(init)
    layout = load_checkpoint(path).layout if path.is_file() else ""
    if layout in OTHER_SYSTEMS:
        problem = f"is a {layout} checkpoint, which training cannot start from; give a CLIP, or a model trained from one"
        raise UsageError(problem, argument="init", value=init)


def as_arch(base: SigRL, arch: Arch, topk: int) -> SigRL:
    """A model of another architecture that shares the towers of `base`, and its SVFR and GMC where both have them."""
    dim = base.config.embed_dim
    graph: tuple[GraphConfig, ...] = ()
    if arch.has_graph:
        hidden = GRAPH_HEADS * GRAPH_HIDDEN
        graph = base.config.graph or (GraphConfig(dim, GRAPH_HEADS, GRAPH_HIDDEN), GraphConfig(hidden, 1, dim))
    model = SigRL(replace(base.config, arch=arch, topk=topk, graph=graph))
    model.visual, model.text = base.visual, base.text
    if arch.has_graph and base.svfr is not None:
        model.svfr, model.gmc = base.svfr, base.gmc
    return model
