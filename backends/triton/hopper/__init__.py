"""Kernels for NVIDIA Hopper in Gluon: what they take, their tile shapes, their launches."""
