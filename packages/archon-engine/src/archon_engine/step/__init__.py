"""One optimizer step: micro-batches, loss totals, gradient norm."""
