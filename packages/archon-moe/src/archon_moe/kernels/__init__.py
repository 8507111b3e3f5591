"""Implementations of grouped experts: many small feed-forward blocks, each applied to its own rows."""
