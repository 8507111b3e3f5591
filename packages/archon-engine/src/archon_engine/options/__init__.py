"""The engine's options, and what is made of them before any process starts."""
