"""How tokens reach the ranks that hold their experts, and results come back. One implementation per module."""
