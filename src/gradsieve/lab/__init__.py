"""Measuring and showing what the hook does: benchmarks, studies, reports and emulated links.

Nothing in training imports it. It needs the `lab` extra: ``pip install 'gradsieve[lab]'``.
"""
