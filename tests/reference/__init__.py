"""Slow, obvious kernels written from the definitions, on Python numbers, to compare the real ones with."""
