"""Triton kernels and their launchers, installed as `fgrl.kernels`. Importing this package does not import triton."""
