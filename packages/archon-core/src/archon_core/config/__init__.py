"""Configuration: the schema, and the reading of files and overrides into it."""
