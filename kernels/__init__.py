"""The kernels that launch on a GPU: CUDA C++ (``*.cuh``, ``*.cu``) and Triton (``*.py``)."""
