"""Training runs on several ranks over an emulated link: what demos and benchmarks are made of."""
