"""Benchmarks: measured on the reader's own machine, printed as one table, JSON on request."""
