"""Pieces of HTML pages that commands write: charts, tables and a style sheet, without anything to load."""
