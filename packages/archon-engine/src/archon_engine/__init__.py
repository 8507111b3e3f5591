"""The Archon engine: sharding, layers, checkpoints and the optimizer step, on plain PyTorch."""

__version__ = "0.1.0"
