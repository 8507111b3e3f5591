"""Verifiable rewards: 1.0 for a completion whose final number is the record's, 0.0 otherwise."""
