"""The values of the option `exchange`: the names of the topologies, and "auto"."""

from typing import Literal, get_args

Exchange = Literal["auto", "gather", "two-shot", "hierarchical", "dense", "dense-fp16"]
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)
