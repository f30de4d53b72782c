"""The corrected answer in `model.generate`."""
