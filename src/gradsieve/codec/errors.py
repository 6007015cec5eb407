"""The error for bytes that are no valid frame."""

from typing import NoReturn


class FrameError(ValueError):
    """A frame is damaged or not for its receiver. The message names the field and its content."""


def refuse(field: str, found: str) -> NoReturn:
    """Raise FrameError for a field."""
    raise FrameError(f"frame field {field}: {found}")
