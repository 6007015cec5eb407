"""What goes wrong outside a single function."""


class SieveError(RuntimeError):
    """gradsieve was set up in a way that cannot work; the message says what to do."""
