"""Ways to compute many small feed-forward blocks at once, each on rows of its own."""
