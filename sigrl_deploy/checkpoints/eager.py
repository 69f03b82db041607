"""A checkpoint with everything that scoring needs: towers put together, preprocessing and template chosen, labels encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import UsageError
from sigrl_deploy.model.matching import require_finite
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.pictures.reading import ImageSource, read_image
from sigrl_deploy.vocabulary.cache import LABELS_PER_BATCH
from sigrl_deploy.vocabulary.label_files import check_labels, read_labels
from sigrl_deploy.vocabulary.vocabulary import Vocabulary


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

    def pixels(self, image: ImageSource) -> FloatArray:
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
    def score_pixels(self, pixels: FloatArray, vocabulary: Vocabulary) -> FloatArray:
        """pixels [B, 3, H, W] → scores [B, C] fp32. Raises ScoreError where one is no finite number."""
        rows = [vocabulary.label_embedding, vocabulary.graph_projection]
        inputs = [None if values is None else torch.from_numpy(values).to(self.device) for values in (pixels, *rows)]
        scores: FloatArray = self.model(*inputs).cpu().numpy()
        require_finite(scores, "fp32")
        return scores


def load_eager(options: CheckpointOptions, *, device: str = "auto") -> EagerModel:
    """A checkpoint on a device: "auto" (a GPU where torch has one), "cpu" or "cuda".

    Raises what `load_model` raises, and UsageError where the device is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("this torch finds no GPU; check its driver, or use `device=cpu`", argument="device", value=device)
    loaded = load_model(options)
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return EagerModel(loaded.model.to(chosen), loaded.preprocess, loaded.template, chosen)
