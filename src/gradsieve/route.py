"""The way that gradients take in a step: as the user has set it, or chosen by what steps take."""

from typing import Literal, get_args

from gradsieve.accounts import Accounts
from gradsieve.choice import Choice
from gradsieve.exchange import FrameExchange
from gradsieve.exchange.probe import measure_link
from gradsieve.registry import Registry
from gradsieve.steering import Steering
from gradsieve.tally import Tally

Exchange = Literal["auto", "gather", "two-shot", "dense", "dense-fp16"]
EXCHANGES = get_args(Exchange)


class Route:
    def __init__(self, exchange: Exchange) -> None:
        self.exchange: Exchange = exchange
        self._accounts = Accounts()
        self._choice: Choice | None = None

    @property
    def way(self) -> Exchange:
        """That the gradients take in this step."""
        if self.exchange != "auto":
            return self.exchange
        return "gather" if self._choice is None else self._choice.way

    @property
    def reason(self) -> str:
        """Why, where it was chosen."""
        return self._choice.reason if self._choice is not None and self.exchange == "auto" else ""

    @property
    def is_dense(self) -> bool:
        """Everything travels in this step, what residuals hold as well."""
        return self.way in ("dense", "dense-fp16")

    def begin_step(self, transport: FrameExchange, registry: Registry) -> None:
        """Measure the link, once, as soon as it is known what travels."""
        if self.exchange == "auto" and self._choice is None and registry.states:
            gradient_bytes = sum(p.numel * p.element_size for p in registry)
            link = measure_link(transport)
            self._choice = Choice(transport.world_size, gradient_bytes, link)

    def end_step(
        self, tally: Tally, transport: FrameExchange, steering: Steering, window: float
    ) -> None:
        """Set way and scale of the next step by what the ranks have told of one before.

        Args:
            window: seconds from the first bucket to the last.
        """
        choice = self._choice if self.exchange == "auto" else None
        if self.is_dense:
            self._accounts.end_dense_step(transport)
            if choice is not None:
                choice.end_dense_step()
            return
        slowest = self._accounts.end_sieve_step(
            tally, transport, window=window, scale=steering.scale
        )
        if slowest is None:
            return
        if steering.budget is not None:
            steering.budget.follow(slowest, tally.buckets)
        if choice is not None:
            choice.end_sieve_step(slowest, tally.buckets)
