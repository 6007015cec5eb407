"""Local steps: ranks train apart, and exchange what they have learned from time to time."""

from gradsieve.outer.record import OuterRecord
from gradsieve.outer.sync import OuterSync

__all__ = ["OuterRecord", "OuterSync"]
