"""Kernel families for NVIDIA Hopper in Gluon, with the slots of the portable families."""
