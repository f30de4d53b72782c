"""Any grid of readouts and their free choices, from stored evidence, without a model."""
