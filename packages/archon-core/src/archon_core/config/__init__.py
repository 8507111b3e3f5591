"""Configuration: the schema, how files and overrides are merged into it, and the decisions taken over it."""
