"""A Llama that nobody at Archon knows of: what a package from outside looks like."""
