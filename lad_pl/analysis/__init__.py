"""Analyses of finished runs from their files: sweep, report, compare, and the ranking of photos."""
