"""What each part of a trained SigRL model adds: its scores without GMC, SVFR, the local match or the global match.

Nothing is trained again, so a part's share is what the trained model makes of it, not what a model trained without it would
reach; MKT, which is trained without SVFR and GMC, is that comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.eager import EagerModel
from sigrl_deploy.model.sigrl import encode_image, local_match, match, unit_rows
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

PARTS = ("gmc", "svfr", "local", "global")


@dataclass(frozen=True)
class Ablated(EagerModel):
    """A SigRL checkpoint that leaves out one of PARTS.

    Without GMC the label graph's share of V is 0, without SVFR the patches are matched as the ViT gives them.
    """

    without: str

    @torch.inference_mode()
    def score_pixels(self, pixels: FloatArray, vocabulary: Vocabulary) -> FloatArray:
        """Pixels [B, 3, H, W] to scores [B, C] fp32."""
        assert vocabulary.graph_projection is not None
        assert self.model.svfr is not None
        label_embedding, projection = (
            torch.from_numpy(rows).to(self.device) for rows in (vocabulary.label_embedding, vocabulary.graph_projection)
        )
        patches, global_feature = encode_image(self.model.visual, torch.from_numpy(pixels).to(self.device))
        if self.without != "svfr":
            graph = torch.zeros_like(projection) if self.without == "gmc" else projection
            patches = self.model.svfr(patches, label_embedding, graph)
        config = self.model.config
        if self.without == "local":
            scores = unit_rows(global_feature @ label_embedding.T)
        elif self.without == "global":
            scores = unit_rows(local_match(patches, label_embedding, config.topk))
        else:
            scores = match(config.arch, patches, global_feature, label_embedding, config.topk)
        found: FloatArray = scores.cpu().numpy()
        return found
