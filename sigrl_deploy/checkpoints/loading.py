"""From a checkpoint to the PyTorch model, with the text tower that it was trained with."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from sigrl_deploy.architectures import Contract, TextSide
from sigrl_deploy.checkpoints.building import add_text_tower, build_model
from sigrl_deploy.checkpoints.layouts import Checkpoint, load_checkpoint
from sigrl_deploy.checkpoints.model_config import chosen_arch, model_config
from sigrl_deploy.checkpoints.open_clip_configs import ClipConfig, clip_config
from sigrl_deploy.checkpoints.open_clip_weights import (
    NAMED,
    check_source,
    is_pretrained,
    listed_preprocess,
    load_pretrained,
    openai_name,
)
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.checkpoints.vgg_models import load_backbone, vgg_model_config
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import CheckpointError, UsageError, member_of
from sigrl_deploy.image_towers import local_features
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.pictures.preprocess import Preprocess

log = logging.getLogger(__name__)

CLIP_TOKENS = 49408  # size of the vocabulary of CLIP's tokenizer
MIN_CONTEXT = 8  # tokens of the prompt without a label: seven, and end of text


@dataclass(frozen=True)
class LoadedCheckpoint:
    """An eager fp32 model, and the files that it came from. `text` is None where no text tower was asked for,
    `backbone` where it has no VGG19 of its own."""

    checkpoint: Checkpoint
    text: Checkpoint | None
    model: SigRL
    preprocess: Preprocess
    template: str
    backbone: Checkpoint | None = None


def load_model(options: CheckpointOptions, *, with_text: bool = True) -> LoadedCheckpoint:
    """Read a checkpoint, and the text tower that it was trained with unless `with_text` is False.

    Raises UsageError for options that this checkpoint cannot follow, CheckpointError for files that cannot be read or do not
    fit each other.
    """
    check_source(options.checkpoint)
    checkpoint, clip = _open(options.checkpoint, "checkpoint")
    if options.clip_config and checkpoint.record is not None:
        problem = f"{options.checkpoint} has its config in its header; leave it out"
        raise UsageError(problem, argument="clip_config", value=options.clip_config)
    clip = clip_config(options.clip_config) if options.clip_config else clip
    backbone = load_backbone(options, checkpoint)
    text = text_clip = None
    arch = chosen_arch(checkpoint, options.arch)
    if arch.text_side is not TextSide.TOWER:
        _refuse_unused(options, arch)
    elif with_text:
        text, text_clip = _text_source(options, checkpoint, clip)
        clip = clip if options.clip_config else text_clip
    if backbone is None:
        config = model_config(checkpoint, options.arch, options.topk, clip)
    else:
        config = vgg_model_config(checkpoint, backbone, options)
    model = build_model(checkpoint, config, backbone)
    patches = local_features(model.config.vision)
    if options.topk is not None and options.topk > patches:
        raise UsageError(f"the model has {patches} patches; expected at most that many", argument="topk", value=options.topk)
    if text is not None:
        add_text_tower(model, text, text_clip)
        _check_tokens(text, model)
    template = options.template or (checkpoint.record.template if checkpoint.record else model.config.arch.default_template)
    return LoadedCheckpoint(checkpoint, text, model, _preprocess(options, checkpoint, model), template, backbone)


def _open(source: str | Path, argument: str) -> tuple[Checkpoint, ClipConfig | None]:
    """A file, or open_clip's own weights with their config."""
    return load_pretrained(str(source), argument) if is_pretrained(source) else (load_checkpoint(source), None)


def _text_source(
    options: CheckpointOptions, checkpoint: Checkpoint, clip: ClipConfig | None
) -> tuple[Checkpoint, ClipConfig | None]:
    text_tower = options.text_tower
    if text_tower is None and checkpoint.has_text:
        return checkpoint, clip
    if text_tower is None:
        return _openai_text(options.checkpoint, checkpoint)
    if not os.path.exists(text_tower) and not is_pretrained(text_tower):
        raise UsageError(f"no such file; expected {NAMED}", argument="text_tower", value=text_tower)
    text, own = _open(text_tower, "text_tower")
    return text, own or clip


def _openai_text(source: str | Path, checkpoint: Checkpoint) -> tuple[Checkpoint, ClipConfig | None]:
    """The text tower that the recipes of SigRL and MKT freeze: that of OpenAI's model with the same ViT."""
    advice = "give it with `text_tower`, or, to export, `labels` with `label_embeddings`"
    name = openai_name(checkpoint)
    if name is None:
        raise UsageError(f"{source}: holds no text tower, and none of OpenAI's models has a ViT of its size; {advice}")
    log.info("%s: holds no text tower; using that of %s, which its recipe freezes", source, name)
    try:
        return load_pretrained(name)
    except CheckpointError as error:
        raise UsageError(f"{source}: holds no text tower, and {name} is not available ({_reason(error)}); {advice}") from None


def _refuse_unused(options: CheckpointOptions, arch: Arch) -> None:
    """Raise UsageError for options that are about CLIP's text tower and configs, or about patches that are not matched."""
    for name in ("text_tower", "clip_config", *(() if arch.has_local else ("topk",))):
        value = getattr(options, name)
        if value is not None:
            problem = f"{options.checkpoint} holds a model of arch {arch.value}, which has no use for it; leave it out"
            raise UsageError(problem, argument=name, value=value)


def _reason(error: CheckpointError) -> str:
    """What was wrong, without the advice that follows it."""
    return error.problem.rpartition("; ")[0] or error.problem


def _check_tokens(text: Checkpoint, model: SigRL) -> None:
    config = model.config.text
    assert config is not None
    if config.vocab_size != CLIP_TOKENS:
        raise CheckpointError(
            f"{text.path}: tensor {text.label('text.token_embedding.weight')} has {config.vocab_size} rows, expected "
            f"{CLIP_TOKENS}: a tower for CLIP's tokenizer"
        )
    if config.context_length < MIN_CONTEXT:
        raise CheckpointError(
            f"{text.path}: tensor {text.label('text.positional_embedding')} has {config.context_length} rows, expected "
            f"{MIN_CONTEXT} or more"
        )


def _preprocess(options: CheckpointOptions, checkpoint: Checkpoint, model: SigRL) -> Preprocess:
    """The preprocessing asked for, or else the one that the checkpoint records, or else the architecture's.

    CLIP's is that of the weights that are named, where open_clip lists them.
    """
    contract, size = options.preprocess, model.config.vision.image_size
    if contract is not None:
        contract = member_of(Contract, contract, "preprocess")
    record = checkpoint.record
    if record is not None and contract in (None, record.preprocess.contract):
        return record.preprocess
    if contract is None:
        contract = model.config.arch.default_contract
        if "feature_extractor" in checkpoint.prefix:
            log.warning(
                "%s: has the layout of the single-positive recipe, and is used with zero-shot preprocessing; "
                "if it was trained by that recipe, choose the single-positive preprocessing",
                checkpoint.path,
            )
    named = str(options.checkpoint) if is_pretrained(options.checkpoint) else options.clip_config
    listed = listed_preprocess(named, size) if named and contract is Contract.CLIP else None
    return listed or Preprocess.for_contract(contract, size)
