"""A checkpoint with everything that scoring needs: towers put together, preprocessing and template chosen, labels encoded."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sigrl_deploy.cache import LABELS_PER_BATCH
from sigrl_deploy.checkpoint import Checkpoint, add_text_tower, build_model, load_checkpoint, model_config
from sigrl_deploy.clip_config import ClipConfig
from sigrl_deploy.clip_config import clip_config as parse_clip_config
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import CheckpointError, UsageError
from sigrl_deploy.images import ImageSource, read_image
from sigrl_deploy.matching import require_finite
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.preprocess import Contract, Preprocess
from sigrl_deploy.pretrained import NAMED, check_source, is_pretrained, load_pretrained, openai_name
from sigrl_deploy.vocabulary import Vocabulary, check_labels, read_labels

log = logging.getLogger(__name__)

CLIP_TOKENS = 49408  # ids that CLIP's tokenizer gives
MIN_CONTEXT = 8  # the prompt alone has seven tokens, and end of text


def load_model(
    source: str | Path,
    *,
    text_tower: str | None = None,
    arch: Arch | None = None,
    topk: int | None = None,
    clip_config: str | None = None,
    with_text: bool = True,
) -> tuple[Checkpoint, Checkpoint | None, SigRL]:
    """A checkpoint, the one that its text tower came from (None without `with_text`), and the eager fp32 model of both.

    `source` and `text_tower` are files, or `NAME:PRETRAINED` for open_clip's own weights; no text tower takes the checkpoint's
    own. `clip_config` None means what the checkpoint records, the config of what is `NAME:PRETRAINED`, or OpenAI's convention.

    Raises UsageError for what cannot be asked of this checkpoint, CheckpointError for files that cannot be read or that do
    not match.
    """
    check_source(source)
    checkpoint, clip = _open(source, "")
    clip = parse_clip_config(clip_config) if clip_config else clip
    text = text_clip = None
    if with_text:
        text, text_clip = _text_source(source, text_tower, checkpoint, clip)
        clip = text_clip if clip_config is None else clip
    model = build_model(checkpoint, model_config(checkpoint, arch, topk, clip))
    patches = model.config.vision.grid**2
    if topk is not None and topk > patches:
        raise UsageError(f"--topk {topk}: the model has {patches} patches; expected at most that many")
    if text is not None:
        add_text_tower(model, text, text_clip)
        _check_tokens(text, model)
    return checkpoint, text, model


def _open(source: str | Path, option: str) -> tuple[Checkpoint, ClipConfig | None]:
    """A file's checkpoint, or open_clip's own weights with their config."""
    return load_pretrained(str(source), option) if is_pretrained(source) else (load_checkpoint(source), None)


def _text_source(
    source: str | Path, text_tower: str | None, checkpoint: Checkpoint, clip: ClipConfig | None
) -> tuple[Checkpoint, ClipConfig | None]:
    if text_tower is None and checkpoint.has_text:
        return checkpoint, clip
    if text_tower is None:
        return _openai_text(source, checkpoint)
    if not os.path.exists(text_tower) and not is_pretrained(text_tower):
        raise UsageError(f"--text-tower {text_tower}: no such file; expected {NAMED}")
    text, own = _open(text_tower, "--text-tower ")
    return text, own or clip


def _openai_text(source: str | Path, checkpoint: Checkpoint) -> tuple[Checkpoint, ClipConfig | None]:
    """The text tower that the recipes of SigRL and MKT freeze: OpenAI's, of the size of the checkpoint's ViT."""
    advice = "give it with --text-tower FILE, or, to export, --labels with --label-embeddings"
    name = openai_name(checkpoint)
    if name is None:
        raise UsageError(f"{source}: holds no text encoder, and its ViT is of none of OpenAI's sizes; {advice}")
    log.info("%s: holds no text encoder; taking that of %s, which its recipe freezes", source, name)
    try:
        return load_pretrained(name)
    except CheckpointError as error:
        raise UsageError(f"{source}: holds no text encoder, and OpenAI's cannot be had ({_reason(error)}); {advice}") from None


def _reason(error: CheckpointError) -> str:
    """What was wrong, without the advice that follows it."""
    return str(error).rpartition("; ")[0] or str(error)


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


def default_template(checkpoint: Checkpoint, model: SigRL) -> str:
    """The template that a checkpoint was trained with, or its architecture's."""
    return checkpoint.record.template if checkpoint.record else model.config.arch.default_template


def choose_preprocess(checkpoint: Checkpoint, model: SigRL, contract: Contract | None) -> Preprocess:
    """The preprocessing asked for, or what the checkpoint records, or the architecture's."""
    if contract is None and checkpoint.record is not None:
        return checkpoint.record.preprocess
    if contract is None:
        contract = Contract.CLIP if model.config.arch is Arch.CLIP else Contract.ZERO_SHOT
        if "feature_extractor" in checkpoint.prefix:
            log.warning(
                "%s: is in the single-positive recipe's layout, used with zero-shot preprocessing; "
                "if it was trained by that recipe, give --preprocess single-positive",
                checkpoint.path,
            )
    return Preprocess.for_contract(contract, model.config.vision.image_size)


def tokenize(model: SigRL, template: str, labels: Sequence[str]) -> Tensor:
    """Labels in a prompt → token ids [N, context] int64, by open_clip's own tokenizer."""
    from open_clip.tokenizer import SimpleTokenizer

    assert model.config.text is not None
    tokenizer = SimpleTokenizer(context_length=model.config.text.context_length)
    ids: Tensor = tokenizer([template.replace("{label}", label) for label in labels])
    return ids


@torch.inference_mode()
def embed_labels(model: SigRL, template: str, labels: Sequence[str]) -> Tensor:
    """T [C, D] of labels, on the model's device, in batches of bounded memory."""
    device = model.visual.proj.device
    ids = tokenize(model, template, labels).split(LABELS_PER_BATCH)
    return torch.cat([model.encode_text(cut_padding(batch).to(device)) for batch in ids])


def cut_padding(token_ids: Tensor) -> Tensor:
    """token ids [N, L] without the columns behind the last end-of-text token, the highest id, which change nothing."""
    return token_ids[:, : int(token_ids.argmax(dim=1).max()) + 1]


@dataclass(frozen=True)
class EagerModel:
    """A checkpoint ready to score pictures in PyTorch fp32, used like a `Recognizer`."""

    model: SigRL
    preprocess: Preprocess
    template: str
    device: str  # "cpu" or "cuda"

    @property
    def description(self) -> str:
        """Backend, device and precision."""
        return f"PyTorch {torch.__version__} on {self.device}, fp32"

    @property
    def arch(self) -> Arch:
        return self.model.config.arch

    @property
    def rules(self) -> dict[str, object]:
        """By name, everything beside weights that scores depend on."""
        config = self.model.config
        preprocess = self.preprocess.contract.value
        return {"arch": config.arch.value, "topk": config.topk, "template": self.template, "preprocess": preprocess}

    def pixels(self, image: ImageSource) -> NDArray[np.float32]:
        """One picture → [3, H, W], as the checkpoint was trained. Raises ImageError where it cannot be read."""
        return self.preprocess(read_image(image))

    @torch.inference_mode()
    def vocabulary(self, labels: str | Path | Sequence[str]) -> Vocabulary:
        """Labels, or a label file, with T and G Wbᵀ. Raises LabelError for labels that cannot be used."""
        names = read_labels(labels) if isinstance(labels, (str, Path)) else check_labels(labels)
        label_embedding = embed_labels(self.model, self.template, names)
        graph_projection = self.model.graph_projection(label_embedding)
        return Vocabulary(
            names, label_embedding.cpu().numpy(), None if graph_projection is None else graph_projection.cpu().numpy()
        )

    @torch.inference_mode()
    def score_pixels(self, pixels: NDArray[np.float32], vocabulary: Vocabulary) -> NDArray[np.float32]:
        """pixels [B, 3, H, W] → scores [B, C] fp32. Raises ScoreError where one is no finite number."""
        rows = [vocabulary.label_embedding, vocabulary.graph_projection]
        inputs = [None if values is None else torch.from_numpy(values).to(self.device) for values in (pixels, *rows)]
        scores: NDArray[np.float32] = self.model(*inputs).cpu().numpy()
        require_finite(scores, "fp32")
        return scores


def load_eager(
    path: Path,
    *,
    text_tower: str | None = None,
    arch: Arch | None = None,
    topk: int | None = None,
    clip_config: str | None = None,
    preprocess: Contract | None = None,
    template: str | None = None,
    device: str = "auto",
) -> EagerModel:
    """A checkpoint on a device: "auto" (a GPU where torch has one), "cpu" or "cuda". None means what the checkpoint says.

    Raises what `load_model` raises, and UsageError where the device is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch finds no GPU; check its driver, or use --device cpu")
    checkpoint, _, model = load_model(path, text_tower=text_tower, arch=arch, topk=topk, clip_config=clip_config)
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return EagerModel(
        model.to(chosen),
        choose_preprocess(checkpoint, model, preprocess),
        template or default_template(checkpoint, model),
        chosen,
    )
