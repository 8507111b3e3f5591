"""Publication of weights to servers, in two phases."""
