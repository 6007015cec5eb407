"""What the core tells the user: warnings of the logger ``gradsieve``; it prints nothing.

A script that configures no logging finds them on standard error, where `logging` sends what nobody
handles.
"""

import logging
import os

logger = logging.getLogger("gradsieve")
_told: set[str] = set()


def tell(text: str, *, any_rank: bool = False) -> None:
    """Log a warning, each text once a process.

    Args:
        text: a whole sentence that names gradsieve and says what to do.
        any_rank: log it on whichever rank this is, for what concerns this rank alone. By default
            only local rank 0 logs it, once a machine.
    """
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if text in _told or not (is_first or any_rank):
        return
    _told.add(text)
    logger.warning(text)
