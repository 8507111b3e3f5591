"""Evaluates expressions that a model wrote, by walking their syntax tree: nothing is compiled or executed."""
