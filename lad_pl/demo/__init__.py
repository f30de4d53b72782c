"""The embedded demo: a small world of rendered scenes and a tiny VLM trained on it from scratch."""
