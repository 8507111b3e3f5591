"""Megatron-Core as a second oracle: loss and gradients of the same weights and batch from another implementation.

``archon verify`` compares a layout with one process that runs the same model code. This oracle shares none of it:
NVIDIA's Megatron-Core builds the model, divides it, and runs forward and backward passes, on CPUs over gloo.
"""
