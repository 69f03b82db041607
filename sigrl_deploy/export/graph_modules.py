"""The two graphs as PyTorch modules: what `visual.onnx` and `text.onnx` compute, typed in one precision.

Run eagerly they compute with the model's own SVFR and GMC; under `torch.onnx.export` each becomes one custom-domain node.
Inputs and outputs are fp32 in every precision, so that cached vocabularies fit every file.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sigrl_deploy.config import Precision
from sigrl_deploy.graphs.functions import DOMAIN
from sigrl_deploy.graphs.quantising import columns
from sigrl_deploy.model.sigrl import GMC, SVFR, GraphAttention, SigRL, encode_image, encode_text


def _symbolic(op: str, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{op}", inputs, {}, dtype=like.dtype, shape=tuple(like.shape), version=1)


class SVFRNode(nn.Module):
    """`sigrl::SVFR`. Its weights are stored transposed, so that every matrix product reads them by rows."""

    def __init__(self, svfr: SVFR, dim: int, precision: Precision) -> None:
        super().__init__()
        self.svfr = svfr
        weights = {"decouple": svfr.decouple.weight.T, "reconstruct": svfr.reconstruct.weight.T}
        scales = {}
        if precision.is_int8:
            for name, weight in list(weights.items()):
                weights[name], scales[f"{name}_scale"] = columns(weight.detach())
        values = {"decouple": weights["decouple"], "fuse": svfr.fuse.weight[:, :dim].T, "reconstruct": weights["reconstruct"]}
        self.names = [*values, *scales]
        for name, value in (values | scales).items():
            self.register_buffer(name, value.contiguous())

    def forward(self, patches: Tensor, label_embedding: Tensor, graph_projection: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return self.svfr(patches, label_embedding, graph_projection)
        weights = [self.get_buffer(name) for name in self.names]
        return _symbolic("SVFR", [patches, label_embedding, graph_projection, *weights], patches)


class GMCNode(nn.Module):
    """`sigrl::GMC`, two GATv2 layers."""

    def __init__(self, gmc: GMC) -> None:
        super().__init__()
        self.gmc = gmc
        for index, layer in enumerate(gmc.layers, start=1):
            assert isinstance(layer, GraphAttention)
            self.register_buffer(f"weight{index}", layer.linear.weight.T.contiguous())
            self.register_buffer(f"attention{index}", layer.attention.detach())

    def forward(self, label_embedding: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return self.gmc(label_embedding)
        inputs = [label_embedding, self.weight1, self.attention1, self.weight2, self.attention2]
        return _symbolic("GMC", inputs, label_embedding)  # type: ignore[arg-type]


class VisualGraph(nn.Module):
    """Pixels [B, 3, H, W], T [C, D] and G Wbᵀ [C, D] to local features [B, P, D] and the global feature [B, D].

    Without SVFR pixels are the only input; a feature that is not matched is no output.
    """

    def __init__(self, model: SigRL, precision: Precision = Precision.FP32) -> None:
        super().__init__()
        self.visual, self.dtype = model.visual, model.dtype
        arch = model.config.arch
        self.local, self.whole = arch.has_local, arch.has_global
        self.svfr = SVFRNode(model.svfr, model.config.embed_dim, precision) if model.svfr is not None else None

    @property
    def input_names(self) -> list[str]:
        return ["pixels", "label_embedding", "graph_projection"] if self.svfr is not None else ["pixels"]

    @property
    def output_names(self) -> list[str]:
        return ["local_feature"] * self.local + ["global_feature"] * self.whole

    def forward(self, pixels: Tensor, *vocabulary: Tensor) -> tuple[Tensor, ...]:
        dtype = self.dtype
        patches, global_feature = encode_image(self.visual, pixels.to(dtype))
        if self.svfr is not None:
            label_embedding, graph_projection = vocabulary
            patches = self.svfr(patches, label_embedding.to(dtype), graph_projection.to(dtype))
        return (patches.float(),) * self.local + (global_feature.float(),) * self.whole


class TextGraph(nn.Module):
    """Cached rows of T [M, D] and token ids [N, L] to T [M + N, D], cached rows first, and G Wbᵀ [M + N, D].

    M or N may be 0. Without a text tower there is no input `token_ids`; without a label graph neither the input
    `cached_embedding` nor the output `graph_projection`.
    """

    def __init__(self, model: SigRL) -> None:
        super().__init__()
        self.text = model.text
        self.gmc = GMCNode(model.gmc) if model.gmc is not None else None
        if model.svfr is not None:
            self.register_buffer("fuse", model.svfr.fuse.weight[:, model.config.embed_dim :].T.contiguous())

    @property
    def input_names(self) -> list[str]:
        return ["cached_embedding"] * (self.gmc is not None) + ["token_ids"] * (self.text is not None)

    @property
    def output_names(self) -> list[str]:
        return ["label_embedding"] + ["graph_projection"] * (self.gmc is not None)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.input_names, inputs, strict=True))
        rows = [given["cached_embedding"]] if self.gmc is not None else []
        if self.text is not None:
            rows.append(encode_text(self.text, given["token_ids"]).float())
        label_embedding = torch.cat(rows)
        if self.gmc is None:
            return (label_embedding,)
        fuse = self.fuse
        assert isinstance(fuse, Tensor)
        graph = self.gmc(label_embedding.to(fuse.dtype))
        return label_embedding, (graph @ fuse).float()
