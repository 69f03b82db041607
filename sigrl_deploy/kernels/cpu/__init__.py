"""SVFR on a CPU as one native kernel: `native/` in C++, called by ctypes. See `svfr.py`.

It is built when the package is installed, where there is a C++ compiler, and needs AVX2, or on ARM the dot product of Armv8.2.
Elsewhere SVFR runs as the ONNX function of the bundle's graph.
"""
