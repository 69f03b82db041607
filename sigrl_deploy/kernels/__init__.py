"""The fused ops, one file each: formula, shapes, cost, the Triton kernel, its launcher, and a plain reference.

They run on NVIDIA GPUs, and under Triton's interpreter (`TRITON_INTERPRET=1`) on CPU tensors, which is how they are tested.
"""
