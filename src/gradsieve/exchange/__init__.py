"""Exchange frames between ranks, in a thread and process groups of their own."""

from gradsieve.exchange.attendance import outer_attendance
from gradsieve.exchange.frames import ExchangeError, FrameExchange, numbers_of_all
from gradsieve.exchange.managed import ManagedGroup, is_managed
from gradsieve.exchange.new_group import group_of_its_own

__all__ = [
    "ExchangeError",
    "FrameExchange",
    "ManagedGroup",
    "group_of_its_own",
    "is_managed",
    "numbers_of_all",
    "outer_attendance",
]
