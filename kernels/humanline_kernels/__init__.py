"""Triton kernels of the humanline losses. Knows pointers, strides and blocks; knows no model."""
