"""The words for the exchange of a step: a topology's name, or "auto" for a choice of them."""

from typing import Literal, get_args

Exchange = Literal["auto", "gather", "two-shot", "hierarchical", "dense", "dense-fp16"]
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)
