"""Frames from rank to rank, in a thread and a process group of their own."""

from gradsieve.exchange.frames import ExchangeError, FrameExchange, Notes, numbers_of_all
from gradsieve.exchange.group import group_of_its_own, groups_joined, require_alike_names
from gradsieve.exchange.nodes import Nodes, require_nodes, stated_node_size
from gradsieve.exchange.worker import ExchangeWorker

__all__ = [
    "ExchangeError",
    "ExchangeWorker",
    "FrameExchange",
    "Nodes",
    "Notes",
    "group_of_its_own",
    "groups_joined",
    "numbers_of_all",
    "require_alike_names",
    "require_nodes",
    "stated_node_size",
]
