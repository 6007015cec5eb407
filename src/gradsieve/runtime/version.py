"""Which gradsieve this is."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gradsieve")
except PackageNotFoundError:
    # The sources lie on the path, and nothing is installed.
    __version__ = "unknown"
