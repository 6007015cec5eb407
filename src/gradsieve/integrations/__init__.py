"""gradsieve in training frameworks. Each module needs its framework, and is imported by name."""
