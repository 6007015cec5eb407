"""Training runs on several ranks over an emulated link."""
