"""Backends: a plan in, a kernel out. Nothing else in attnc knows Triton or TVM."""
