"""The HTML report of finished runs, with its figures and tables."""
