"""Threshold-pruned gradients for PyTorch data-parallel training over slow links."""
