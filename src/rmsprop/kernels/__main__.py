"""`python -m rmsprop.kernels` says which CPU kernel is in use."""

from rmsprop.kernels import cpu

print(f"CPU kernel: {cpu.NAME}")
