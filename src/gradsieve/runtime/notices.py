"""What the core tells the user: through logging, on the first rank of a machine, once."""

import logging
import os

logger = logging.getLogger("gradsieve")
_told: set[str] = set()


def tell(text: str) -> None:
    """Log a warning, once a process, on local rank 0."""
    if text in _told or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    _told.add(text)
    logger.warning(text)
