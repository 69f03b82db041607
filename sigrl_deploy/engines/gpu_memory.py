"""How much of a GPU's memory a vocabulary takes, checked before the run."""

from __future__ import annotations

from sigrl_deploy.errors import UsageError

FP32 = 4


def pass_bytes(rows: int, patches: int, dim: int, itemsize: int, *, batch: int = 1, parts: int = 1, graph: bool = True) -> int:
    """The most bytes that one forward pass takes in addition to the model and its tower's activations.

    `rows` are labels with their padding (C), `patches` P, `dim` D, `itemsize` bytes of the model's dtype, `parts` the splits of
    stage 2, `graph` whether the model has SVFR. This counts as if nothing were freed in between:

    - vocabulary: T and G Wbᵀ [C, D] in the dtype, twice, since a CUDA graph keeps its own copy;
    - SVFR: S, S R, S R Waᵀ and V [B, C, D] in fp32, V in the dtype, T and G Wbᵀ widened to fp32, Sᵀ T, its relu and R
      [B, D, D], partial sums [splits, B, P, D] with their sum and product, all fp32;
    - matching: T widened, similarities [B, P, C] of the plain form, three [B, C] of scores, all fp32.
    """
    labels, per_picture = rows * dim, batch * rows * dim
    total = 2 * (2 if graph else 1) * labels * itemsize
    if graph:
        total += per_picture * (4 * FP32 + itemsize) + 2 * labels * FP32
        total += FP32 * batch * (3 * dim * dim + (parts + 2) * patches * dim)
    return total + FP32 * (labels + batch * rows * (patches + 3))


def check_room(labels: int, needed: int, free: int) -> None:
    """Raise UsageError where one picture with `labels` labels needs more bytes than are free."""
    if needed > free:
        raise UsageError(
            f"{labels} labels: one picture needs {needed / 1e9:.1f} GB beside the model, {free / 1e9:.1f} GB of the GPU "
            "are free; use fewer labels, or `device='cpu'`"
        )
