"""What a rank keeps for each parameter: residual, threshold and moments, found by name."""
