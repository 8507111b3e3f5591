"""Losses as sums of per-token terms, aggregated over a batch in one of three ways."""
