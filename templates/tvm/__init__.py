"""Kernel families for CPUs, built with TVM's script builder and compiled by LLVM."""
