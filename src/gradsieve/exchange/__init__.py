"""From one rank's frame to the frames of all."""

from gradsieve.exchange.gather import ExchangeError, Gather
from gradsieve.exchange.group import group_of_its_own
from gradsieve.exchange.worker import ExchangeWorker

__all__ = ["ExchangeError", "ExchangeWorker", "Gather", "group_of_its_own"]
