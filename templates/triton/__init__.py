"""Kernel families for Triton, with slots; the functions that slots call are in ``lib``."""
