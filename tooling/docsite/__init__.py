"""The documentation site: which files of the repository are pages, how their links are kept whole, and what is checked.

Pages are written for a code host, where links go from file to file; the site is made from the same files.
"""
