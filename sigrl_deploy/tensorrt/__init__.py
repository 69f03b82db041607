"""TensorRT engines of a bundle: how they are built, found and run. `engines/tensorrt.py` scores pictures with them."""
