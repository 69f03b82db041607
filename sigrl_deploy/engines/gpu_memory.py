"""What a vocabulary takes of a GPU's memory, said before the run."""

from __future__ import annotations

from sigrl_deploy.errors import UsageError

FP32 = 4


def pass_bytes(rows: int, patches: int, dim: int, itemsize: int, *, batch: int = 1, parts: int = 1, graph: bool = True) -> int:
    """The most that one forward pass takes beside the model and its tower's activations, in bytes.

    `rows` are labels with their padding (C), `patches` P, `dim` D, `itemsize` bytes of the model's dtype, `parts` the splits of
    stage 2, `graph` whether the model has SVFR. Counted as if nothing were freed between its parts:

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
    """Raise UsageError where `needed` bytes of one picture with so many labels exceed the `free` ones."""
    if needed > free:
        raise UsageError(
            f"{labels} labels: one picture needs {needed / 1e9:.1f} GB beside the model, {free / 1e9:.1f} GB of the GPU "
            "are free; use fewer labels, or `device=cpu`"
        )
