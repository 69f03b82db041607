"""TensorRT engines of a bundle: what they are keyed by, how they are built, and what runs one. The engine is in `engines/`."""
