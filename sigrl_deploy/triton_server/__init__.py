"""A model repository for Triton Inference Server, and what its front model runs. (`triton` is the language of kernels.)"""
