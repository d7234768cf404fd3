"""Kernels for NVIDIA and AMD GPUs through Triton."""

from attnc.backends.triton.backend import TritonBackend

__all__ = ["TritonBackend"]
