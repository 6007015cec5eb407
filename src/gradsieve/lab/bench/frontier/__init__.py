"""Named sets of runs, played on many cores and drawn as one picture of quality per bit."""
