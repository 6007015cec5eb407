"""The first stage of a bucket's way: which gradients go out, and what stays."""

from gradsieve.sieve.moments import Moments
from gradsieve.sieve.select import measure, select
from gradsieve.sieve.workspace import Workspace, room_for

__all__ = ["Moments", "Workspace", "measure", "room_for", "select"]
