"""TVM's kernels for NVIDIA GPUs: TIR to CUDA source, and by nvcc to machine code."""
