"""Triton kernels; importing this package imports nothing."""
