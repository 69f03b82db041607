"""SVFR in one native kernel on a CPU.

    S[c, d] = Σ_n softmax_n(E1)[n, c, d] X[n, d]          E1[n, c, d] = Σ_j W1[d, j] tanh(X[n, j] T[c, j])      stage 1
    V       = S R Waᵀ + G Wbᵀ                              R = unit rows of relu(Sᵀ T)                             between
    Y[n, d] = X[n, d] Σ_c softmax_n(E2)[n, c, d]          E2[n, c, d] = Σ_j W2[d, j] tanh(X[n, j] V[c, j])      stage 2

(docs/method.md, "Image side")

A label's tanh is computed once, [P, D], and multiplied by one panel of W after the other; the exponentials and their sums are
taken from the products while these are in the cache, so that no energy is ever written to memory. Threads share labels. Sums,
exponentials and what lies between the stages are in fp32. Weights of int8 have one scale for each channel, and tanh is in
steps of 1/127. A result does not depend on the batch, nor on the number of threads.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.config import Precision
from sigrl_deploy.kernels.cpu.library import InstructionSet, Library, number

WEIGHTS = ("decouple", "fuse", "reconstruct")
_MOST = 2**31 - 1  # pictures, patches or labels, as the library counts them
_NUMBERS = {Precision.FP32: 0, Precision.BF16: 1, Precision.INT8: 2}  # as in native/kernels.h


@dataclass(frozen=True)
class Products:
    """How the kernel multiplies by W1 and W2.

    `precision` is fp32, bf16 or int8. Where there is no product in bf16, that runs in fp32. `largest_weight` are the steps of
    int8 weights on either side of zero, by default as many as the instruction set multiplies without overflow.
    """

    precision: Precision
    largest_weight: int | None = None


class CpuSvfr:
    """SVFR with one model's weights, W1ᵀ, Waᵀ and W2ᵀ [D, D] by the names in WEIGHTS. May be called from several threads.

    `threads` are those that one call uses. Raises MemoryError.
    """

    def __init__(
        self, weights: Mapping[str, FloatArray], library: Library, chosen: InstructionSet, products: Products, threads: int
    ) -> None:
        arrays = [np.require(weights[name], np.float32, ["C", "A"]) for name in WEIGHTS]
        self.dim = len(arrays[0])
        if any(array.shape != (self.dim, self.dim) for array in arrays):
            raise ValueError(f"weights of shapes {[array.shape for array in arrays]}, expected squares of one size")
        precision = products.precision
        if precision is Precision.BF16 and not library.has_bf16(chosen):
            precision = Precision.FP32
        most = library.largest_weight(chosen)
        largest = min(products.largest_weight or most, most)
        pointers = [array.ctypes.data for array in arrays]
        self._library = library
        self._handle = library.svfr_open(*pointers, self.dim, number(chosen), _NUMBERS[precision], largest, threads)
        if not self._handle:
            raise MemoryError("no memory for the weights of SVFR, no thread, or no permission to use tiles")
        # Not at exit: other threads may still be in here, and the system takes everything back.
        weakref.finalize(self, _close, library, self._handle, os.getpid()).atexit = False

    def __call__(self, patches: FloatArray, label_embedding: FloatArray, graph_projection: FloatArray) -> FloatArray:
        """patches X [B, P, D], T [C, D], G Wbᵀ [C, D], all fp32 → Y [B, P, D]. Raises MemoryError."""
        inputs = [np.require(array, np.float32, ["C", "A"]) for array in (patches, label_embedding, graph_projection)]
        (batch, count, dim), labels = inputs[0].shape, len(inputs[1])
        if dim != self.dim or inputs[1].shape != (labels, dim) or inputs[2].shape != (labels, dim):
            shapes = [array.shape for array in inputs]
            raise ValueError(f"inputs of shapes {shapes}, expected [B, P, {self.dim}] and twice [C, {self.dim}]")
        if max(batch, count, labels) > _MOST:
            raise ValueError(f"inputs of shapes {[array.shape for array in inputs]}, expected at most {_MOST} of each")
        local = np.empty_like(inputs[0])
        x, t, g = (array.ctypes.data for array in inputs)
        if not self._library.svfr_run(self._handle, x, batch, count, dim, t, g, labels, local.ctypes.data):
            raise MemoryError(f"no memory for SVFR of {count} patches and {labels} labels")
        return local


def _close(library: Library, handle: int, process: int) -> None:
    # A forked process has none of the threads that this would end, and the system takes its memory back.
    if os.getpid() == process:
        library.svfr_close(handle)
