"""The engine's options, and the decisions that follow from them before any process starts."""
