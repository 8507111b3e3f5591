"""Formats of tool calls and of reasoning. Pure functions of text, without torch."""
