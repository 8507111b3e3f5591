"""The documentation site: its pages, their links, and checks.

Pages are written for a code host, where links connect files; the site is built from the same files.
"""
