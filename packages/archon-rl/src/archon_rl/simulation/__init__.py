"""``archon simulate``: steps per second of asynchronous training, from the times of sampling and training."""
