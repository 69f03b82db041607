"""The losses of the published recipes (docs/method.md, "Training"). Targets are POSITIVE, NEGATIVE or UNKNOWN."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE, UNKNOWN

MARGIN = 1.0


def ranking_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """BiAM's ranking loss: scores [B, C], targets [B, C] → scalar.

    For each picture, the hinges max(0, 1 + s_q − s_p) over pairs of a positive p and a negative q, averaged over the violated
    pairs only. Then the mean over pictures; one without a violated pair counts 0.
    """
    rows, columns = (targets == POSITIVE).nonzero(as_tuple=True)
    hinge = F.relu(MARGIN + scores[rows] - scores[rows, columns][:, None]) * (targets[rows] == NEGATIVE)  # [positives, C]
    total, violated = (
        torch.zeros(len(scores), dtype=scores.dtype, device=scores.device).index_add(0, rows, per_positive)
        for per_positive in (hinge.sum(1), (hinge > 0).sum(1, dtype=scores.dtype))
    )
    return (total / violated.clamp(min=1)).mean()


def distillation_loss(global_feature: Tensor, frozen_feature: Tensor) -> Tensor:
    """Mean |g − g₀|, both [B, D]; g₀ is from the CLIP that training started from."""
    return (global_feature - frozen_feature).abs().mean()


def entropy_loss(logits: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Entropy maximisation: logits [B, C], targets [B, C], weight α → scalar, the mean over all picture–label pairs.

    With p = sigmoid(logit): −log p for a positive, −log(1 − p) for a known negative, −α H(p) for an unobserved label, where
    H(p) = −p log p − (1 − p) log(1 − p).
    """
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    entropy = -(log_p.exp() * log_p + log_q.exp() * log_q)
    loss = torch.where(targets == POSITIVE, -log_p, torch.where(targets == UNKNOWN, -weight * entropy, -log_q))
    return loss.mean()


def caption_loss(logits: Tensor, true: Tensor) -> Tensor:
    """SigLIP's pairwise sigmoid loss: logits [B, N] of pictures and captions, true [B, N] bool → scalar.

    A caption may be true of several pictures of a batch. All pairs are summed over pictures and averaged over captions.
    """
    return F.binary_cross_entropy_with_logits(logits, true.to(logits.dtype), reduction="sum") / logits.shape[1]
