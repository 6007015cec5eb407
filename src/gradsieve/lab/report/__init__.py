"""What was recorded, for reading."""
