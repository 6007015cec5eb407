"""The original study, reproduced: thresholds on the gradients of the MNIST network."""
