"""Processes: who they are, and small Python values between them. Tensors of training never come this way."""
