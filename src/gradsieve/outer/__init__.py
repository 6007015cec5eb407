"""Local steps: each rank trains for some steps alone, then the ranks average what they learned."""

from gradsieve.outer.nesterov import Nesterov
from gradsieve.outer.record import OuterRecord
from gradsieve.outer.sync import OuterSync

__all__ = ["Nesterov", "OuterRecord", "OuterSync"]
