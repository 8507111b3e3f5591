"""Layers that model packages are built from: plain PyTorch on packed tokens, parallelised from outside."""
