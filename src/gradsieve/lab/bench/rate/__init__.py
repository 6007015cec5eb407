"""Quality against bits: many ranks played in one process."""
