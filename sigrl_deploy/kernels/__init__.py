"""The fused ops, one file each: formula, shapes, cost, the Triton kernels and their launcher. Plain forms are in `model/`.

They run on NVIDIA GPUs and, but for `svfr_hopper.py`, under Triton's interpreter (`TRITON_INTERPRET=1`) on CPU tensors, which
is how they are tested where there is no GPU. `cpu/` is SVFR on a CPU, in C++.
"""
