"""The processes of a run: identity, exchange of small Python values, and shared errors. Not for tensors."""
