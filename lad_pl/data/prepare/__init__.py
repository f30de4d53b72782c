"""Building annotation files: from captioned photographs, from published benchmarks, from anybody's own table."""
