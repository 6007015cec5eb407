"""What is raised where bytes are no frame."""


class FrameError(ValueError):
    """A frame that must not be used: the message names the field and what was found."""


def require(holds: object, field: str, found: str) -> None:
    """Raise FrameError unless `holds`."""
    if not holds:
        raise FrameError(f"frame field {field}: {found}")
