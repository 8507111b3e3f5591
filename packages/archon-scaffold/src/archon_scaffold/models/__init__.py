"""From a Hugging Face configuration to a model package: read the architecture, write the package, compare the two."""
