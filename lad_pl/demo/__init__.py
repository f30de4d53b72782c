"""The embedded demo: rendered scenes and a tiny VLM trained on them from scratch."""
