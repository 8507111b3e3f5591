"""Process groups, and the process-wide settings that must precede them."""
