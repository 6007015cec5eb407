"""The recorder: what a training run leaves on disk, and how that is read again."""

from gradsieve.recording.files import JsonLines
from gradsieve.recording.recorder import Recorder

__all__ = ["JsonLines", "Recorder"]
