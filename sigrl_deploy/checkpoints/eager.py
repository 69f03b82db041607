"""Scoring pictures with a checkpoint itself, in PyTorch fp32: the reference that bundles are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sigrl_deploy.architectures import TextSide
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.layouts import load_checkpoint
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.model_config import chosen_arch
from sigrl_deploy.checkpoints.open_clip_weights import check_source, is_pretrained
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Arch, Device
from sigrl_deploy.errors import UsageError, member_of
from sigrl_deploy.labels.background import with_background
from sigrl_deploy.labels.label_set import Label, LabelSet, label_set
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.model.matching import require_finite
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.pictures.reading import ImageSource, read_image
from sigrl_deploy.vocabulary.cache import LABELS_PER_BATCH
from sigrl_deploy.vocabulary.readout import Readout
from sigrl_deploy.vocabulary.vocabulary import Vocabulary
from sigrl_deploy.vocabulary.wordings import combined, in_template, wordings_of


def tokenize(model: SigRL, template: str, labels: Sequence[str]) -> Tensor:
    """Labels or wordings, in the prompt `template` or their own, to token ids [N, context] int64, by open_clip's tokenizer."""
    from open_clip.tokenizer import SimpleTokenizer

    assert model.config.text is not None
    tokenizer = SimpleTokenizer(context_length=model.config.text.context_length)
    ids: Tensor = tokenizer([in_template(label, template) for label in labels])
    return ids


@torch.inference_mode()
def embed_labels(model: SigRL, template: str, labels: Sequence[str]) -> Tensor:
    """Label embeddings T [C, D], on the model's device. Encodes in batches, so that memory is bounded."""
    device = model.device
    ids = tokenize(model, template, labels).split(LABELS_PER_BATCH)
    return torch.cat([model.encode_text(cut_padding(batch).to(device)) for batch in ids])


def cut_padding(token_ids: Tensor) -> Tensor:
    """Token ids [N, L] without the columns after the last end-of-text token, which change nothing.

    End of text is the highest id.
    """
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
        """By name, everything besides the weights that scores depend on."""
        config = self.model.config
        preprocess = self.preprocess.description
        return {"arch": config.arch.value, "topk": config.topk, "template": self.template, "preprocess": preprocess}

    def pixels(self, image: ImageSource) -> FloatArray:
        """One picture to pixels [3, H, W] fp32, prepared as in training. Raises ImageError where it cannot be read."""
        return self.preprocess(read_image(image))

    @torch.inference_mode()
    def vocabulary(self, labels: str | Path | Sequence[str | Label] | LabelSet) -> Vocabulary:
        """Labels, or a label file, encoded: T [R, D] and G Wbᵀ [R, D]. Raises LabelError for labels that cannot be used."""
        given = read_label_set(labels) if isinstance(labels, (str, Path)) else label_set(labels)
        asked = with_background(given, None)
        readout = None if asked.is_plain else Readout.of(asked, self.template)
        rows = [wordings_of(row) for row in (readout.rows if readout else asked.names)]
        wordings = list(dict.fromkeys(chain.from_iterable(rows)))
        embeddings = dict(zip(wordings, embed_labels(self.model, self.template, wordings).cpu().numpy(), strict=True))
        label_embedding = np.stack([combined(np.stack([embeddings[wording] for wording in row])) for row in rows])
        projection = self.model.graph_projection(torch.from_numpy(label_embedding).to(self.device))
        return Vocabulary(
            asked.names, label_embedding, None if projection is None else projection.cpu().numpy(), readout=readout
        )

    @torch.inference_mode()
    def score_pixels(self, pixels: FloatArray, vocabulary: Vocabulary) -> FloatArray:
        """Pixels [B, 3, H, W] to scores [B, C] fp32. Raises ScoreError where a score is not finite."""
        rows = [vocabulary.label_embedding, vocabulary.graph_projection]
        inputs = [None if values is None else torch.from_numpy(values).to(self.device) for values in (pixels, *rows)]
        scores: FloatArray = self.model(*inputs).cpu().numpy()
        require_finite(scores, "fp32")
        return vocabulary.scores(scores)


def load_eager(options: CheckpointOptions, *, device: Device | str = Device.AUTO) -> EagerModel:
    """A checkpoint on a device: "auto" (a GPU where torch has one), "cpu" or "cuda".

    Raises what `load_model` raises, and UsageError where the device is not there.
    """
    device = member_of(Device, device, "device")
    if device is Device.CUDA and not torch.cuda.is_available():
        raise UsageError(
            "this torch finds no GPU; check its driver, or use `device='cpu'`", argument="device", value=device.value
        )
    _require_text_side(options)
    loaded = load_model(options)
    chosen = "cuda" if device is not Device.CPU and torch.cuda.is_available() else "cpu"
    return EagerModel(loaded.model.to(chosen), loaded.preprocess, loaded.template, chosen)


def _require_text_side(options: CheckpointOptions) -> None:
    """Raise UsageError for a checkpoint whose labels have no rows until it is exported, with the files that belong to it."""
    check_source(options.checkpoint)
    if is_pretrained(options.checkpoint):
        return
    arch = chosen_arch(load_checkpoint(options.checkpoint), options.arch)
    if arch.text_side is not TextSide.TOWER:
        problem = f"holds a model of arch {arch.value}, without a text tower; export it, and give the bundle"
        raise UsageError(problem, argument="checkpoint", value=options.checkpoint)
