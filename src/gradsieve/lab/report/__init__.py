"""Reports of what was recorded."""
