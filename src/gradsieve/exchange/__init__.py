"""From one rank's frame to the frames of all."""

from gradsieve.exchange.gather import ExchangeError, Gather

__all__ = ["ExchangeError", "Gather"]
