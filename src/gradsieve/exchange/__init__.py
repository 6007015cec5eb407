"""Exchange frames between ranks, in a thread and process groups of their own."""

from gradsieve.exchange.accord import Accord
from gradsieve.exchange.attendance import outer_attendance, require_attendance
from gradsieve.exchange.frames import (
    ExchangeError,
    FrameExchange,
    OwnGroup,
    numbers_of_all,
)
from gradsieve.exchange.new_group import group_of_its_own, groups_joined, require_alike_names
from gradsieve.exchange.nodes import Nodes, require_nodes, stated_node_size
from gradsieve.exchange.notes import Notes
from gradsieve.exchange.worker import ExchangeWorker

__all__ = [
    "Accord",
    "ExchangeError",
    "ExchangeWorker",
    "FrameExchange",
    "Nodes",
    "Notes",
    "OwnGroup",
    "group_of_its_own",
    "groups_joined",
    "numbers_of_all",
    "outer_attendance",
    "require_alike_names",
    "require_attendance",
    "require_nodes",
    "stated_node_size",
]
