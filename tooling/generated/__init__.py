"""Pages and tables of docs/ that are generated from the code; ``tooling/docs.py`` writes them."""
