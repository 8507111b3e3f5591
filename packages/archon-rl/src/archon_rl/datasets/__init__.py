"""Sources of records: files, Hugging Face data sets and a procedural task."""
