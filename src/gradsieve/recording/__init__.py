"""What a training run leaves on disk, and how it is read again."""

from gradsieve.recording.recorder import Recorder

__all__ = ["Recorder"]
