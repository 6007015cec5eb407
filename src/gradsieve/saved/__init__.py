"""A saved state as plain data: sealed, checked field by field, matched to a model by name."""
