"""Kernels for NVIDIA GPUs as TIR: blocks of threads, tiles in shared memory, products on tensor cores."""
