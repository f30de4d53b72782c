"""What a pass costs: see README.md. Every script runs as ``python -m benchmarks.NAME`` and has ``--help``."""
