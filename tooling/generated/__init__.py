"""Pages and tables of docs/ that are made from the code; ``tooling/docs.py`` writes them."""
