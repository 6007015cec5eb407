"""The names of the ways that gradients take."""

from typing import Literal, get_args

Exchange = Literal["auto", "gather", "two-shot", "hierarchical", "dense", "dense-fp16"]
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)
