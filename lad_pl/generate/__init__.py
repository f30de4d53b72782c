"""Corrected answers in a user's own ``model.generate``: a logits processor and what feeds it."""
