"""The model in the dtype of an exported file."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from sigrl_deploy.config import Precision
from sigrl_deploy.model.transformer import LayerNorm

if TYPE_CHECKING:
    from sigrl_deploy.model.sigrl import SigRL


def typed(model: SigRL, precision: Precision) -> SigRL:
    """A copy of the model in the dtype of an exported file: matrix weights in `precision`, layer norms in fp32."""
    model = copy.deepcopy(model)
    dtype = getattr(torch, precision.torch_name)
    if dtype is not torch.float32:
        model.to(dtype)
        for module in model.modules():
            if isinstance(module, LayerNorm):
                module.float()
    return model
