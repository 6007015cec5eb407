"""The same training with five methods of exchanging gradients."""
