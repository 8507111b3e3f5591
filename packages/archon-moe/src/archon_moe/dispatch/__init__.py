"""Dispatch of tokens to the ranks of their experts, and combine of the outputs. One implementation per module."""
