"""What is raised where bytes are no frame."""

from typing import NoReturn


class FrameError(ValueError):
    """A frame that must not be used: the message names the field and what was found."""


def refuse(field: str, found: str) -> NoReturn:
    raise FrameError(f"frame field {field}: {found}")
