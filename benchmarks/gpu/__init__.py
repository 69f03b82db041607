"""The sections of `gpu_once.py`: what it measures on a GPU, one file per subject."""
