"""Frames from rank to rank, in a thread and a process group of their own."""

from gradsieve.exchange.frames import ExchangeError, FrameExchange, Notes
from gradsieve.exchange.group import group_of_its_own
from gradsieve.exchange.nodes import Nodes, node_size_of
from gradsieve.exchange.worker import ExchangeWorker

__all__ = [
    "ExchangeError",
    "ExchangeWorker",
    "FrameExchange",
    "Nodes",
    "Notes",
    "group_of_its_own",
    "node_size_of",
]
