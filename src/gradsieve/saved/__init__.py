"""Saved states as plain data: sealed, checked field by field, and matched to a model by name."""
