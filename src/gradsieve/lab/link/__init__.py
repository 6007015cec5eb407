"""Emulated links: N ranks on one machine, each behind an interface of a chosen rate.

`open_link` gives a `ShapedLink` where the machine allows network namespaces, else a `Loopback`
that says why it is not shaped. `read_counters` tells how many bytes crossed an interface.
"""

from gradsieve.lab.link.counters import Counters, read_counters
from gradsieve.lab.link.shape import (
    UNSHAPED,
    Link,
    LinkError,
    Loopback,
    ShapedLink,
    format_rate,
    open_link,
    parse_link,
    require_link,
)

__all__ = [
    "UNSHAPED",
    "Counters",
    "Link",
    "LinkError",
    "Loopback",
    "ShapedLink",
    "format_rate",
    "open_link",
    "parse_link",
    "read_counters",
    "require_link",
]
