"""Predictions of the time of a step, from measurements of this machine."""
