"""Go on among other ranks: who stays keeps what it has not sent, who is new takes the weights."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradsieve.bucket.shards import local
from gradsieve.errors import named_ranks
from gradsieve.exchange import ExchangeError, FrameExchange, ManagedGroup, numbers_of_all
from gradsieve.exchange.frames import unreachable
from gradsieve.outer.exchange import OuterExchange
from gradsieve.outer.terms import Terms
from gradsieve.runtime.notices import tell
from gradsieve.saved.seal import crc_of

CHUNK = 2**24
"""Bytes of the source's state that travel at a time."""
NEW = -1
"""The generation of a rank that has been in no group before."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What `OuterSync.regroup` has found. Ranks of the group before are known by their old rank."""

    rank: int
    """Rank of this process in the new group."""
    size: int
    """Number of ranks of the new group."""
    source: int
    """Rank in the new group whose outer weights all ranks have now."""
    joined: tuple[int, ...]
    """Ranks in the new group that were not in the group before."""
    left: tuple[int, ...]
    """Ranks of the group before that are gone. What they had not sent is lost."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a rank tells of itself when it joins a group."""

    exchanges: int
    """Number of exchanges that have arrived."""
    inner_steps: int
    generation: int
    """Number of groups so far; `NEW` if there was none."""
    rank: int
    """Rank in the group before."""
    size: int
    """Number of ranks of the group before."""
    crc: int
    """Checksum of the outer weights."""

    @property
    def place(self) -> tuple[int, int, int]:
        """Numbers that are the same on ranks with the same outer weights and schedule."""
        return self.exchanges, self.inner_steps, self.crc


class Groupings:
    """The groups that the ranks of an `OuterSync` have been in, one after the other.

    Args:
        model: the model, without DDP.
    """

    def __init__(self, exchange: OuterExchange, model: nn.Module) -> None:
        self._exchange, self._model = exchange, model
        self._generation, self._rank, self._size = NEW, 0, 0

    def leave(self) -> ExchangeError | None:
        """End the exchange that is under way in the old group: merge it, or return its error."""
        self._exchange.schedule.ends = None
        try:
            self._exchange.end()
        except ExchangeError as error:
            tell(
                "gradsieve: regroup could not end the exchange that was under way in the old "
                "group, and the ranks of the new one settle what has arrived. The error was: "
                f"{error}",
                any_rank=True,
            )
            return error
        return None

    def go_on(self, group: ManagedGroup, terms: Terms) -> Membership:
        """Meet in another group, and `join` it."""
        self._exchange.state.engine.groups.replace(group)
        meet(group)
        terms.require_alike(group)
        terms.require_alike_optimizer(self._exchange.weights.optimizer, group)
        return self.join()

    def join(self) -> Membership:
        """Take part in the group that the engine has now. All its ranks must call it together.

        After an error it can be called again: weights change after the last collective.

        Raises:
            ExchangeError: a rank has died or stalled.
        """
        exchange = self._exchange
        group = exchange.state.engine.groups.group
        assert isinstance(group, ManagedGroup)
        members = self._told(group)
        me = members[group.rank()]
        # The first of those that have come furthest.
        source = max(
            range(len(members)),
            key=lambda r: (members[r].exchanges, members[r].inner_steps, members[r].generation, -r),
        )
        ahead = members[source]
        is_alike = [member.generation != NEW and member.place == ahead.place for member in members]
        saved = None
        # Kept for the next call if the ranks cannot meet in this one.
        if exchange.in_residuals is None:
            exchange.in_residuals = self._settle(
                arrived=ahead.exchanges == me.exchanges + 1 and ahead.generation == me.generation
            )
        if not all(is_alike):
            saved = self._receive(group, source, needed=not is_alike[group.rank()])
        # From here on nothing fails.
        self._take_over(saved, exchange.in_residuals, is_new=me.generation == NEW)
        exchange.in_residuals = None
        self._begin_anew()
        found = membership(members, group.rank(), source)
        self._generation, self._rank, self._size = ahead.generation + 1, found.rank, found.size
        if found.left and found.rank == 0:
            tell(
                f"gradsieve: {named_ranks(found.left)} of {ahead.size} left the group before inner "
                f"step {self._exchange.schedule.step + 1}; what they had not sent is lost",
                any_rank=True,
            )
        return found

    def _told(self, group: ManagedGroup) -> list[Member]:
        exchange = self._exchange
        crc = 0
        for _, weights in exchange.weights.named:
            crc = (31 * crc + crc_of(weights)) % 2**32
        mine = torch.tensor(
            [
                exchange.state.step,
                exchange.schedule.step,
                self._generation,
                self._rank,
                self._size,
                crc,
            ],
            dtype=torch.float64,
            device="cpu",
        )
        heard = numbers_of_all(FrameExchange(group), mine)
        return [Member(*map(int, numbers)) for numbers in heard]

    def _receive(self, group: ManagedGroup, source: int, *, needed: bool) -> Any:
        """Let all ranks know the state of the source; None on ranks that do not need it."""
        sent = torch.empty(0, dtype=torch.uint8, device="cpu")
        if group.rank() == source:
            sent = self._packed()
        size = torch.tensor([sent.numel()], dtype=torch.float64, device="cpu")
        total = int(max(numbers_of_all(FrameExchange(group), size))[0])
        received = io.BytesIO()
        for start in range(0, total, CHUNK):
            # The others add zeros to the bytes of the source.
            chunk = torch.zeros(min(CHUNK, total - start), dtype=torch.uint8, device="cpu")
            if group.rank() == source:
                chunk.copy_(sent[start : start + CHUNK])
            try:
                group.all_reduce(chunk)
            except RuntimeError as error:
                raise unreachable(group, error) from error
            if needed:
                received.write(chunk.numpy().tobytes())
        if not needed:
            return None
        received.seek(0)
        return torch.load(received, map_location="cpu", weights_only=True)

    def _packed(self) -> Tensor:
        """Return the state of this rank that newcomers take, as bytes."""
        exchange = self._exchange
        sieve = exchange.state.sieve.save()
        nothing = torch.empty(0, dtype=torch.float32, device="cpu")
        parameters = {
            name: {**saved, "residual": nothing, "owned": None, "dealt": None}
            for name, saved in sieve.pop("parameters").items()
        }
        file = io.BytesIO()
        torch.save(
            {
                "schedule": exchange.schedule.save(),
                "weights": {name: w.detach() for name, w in exchange.weights.named},
                "model": [local(tensor) for tensor in self._untrained()],
                "optimizer": exchange.weights.optimizer.state_dict(),
                "sieve": sieve,
                "parameters": parameters,
            },
            file,
        )
        return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)

    def _untrained(self) -> list[Tensor]:
        frozen = [p for p in self._model.parameters() if not p.requires_grad]
        return [*frozen, *self._model.buffers()]

    def _settle(self, *, arrived: bool) -> set[str]:
        """End the exchange that failed on this rank, if one did.

        Args:
            arrived: whether it arrived on the source, which has merged what this rank sent.

        Returns:
            The names of the parameters whose steps up to the exchange are merged, or in the
            residual. Those of the others are still in the weights alone.
        """
        state, under_way = self._exchange.state, self._exchange.under_way
        if under_way is None:
            state.engine.clear_interrupted()
            return set()
        part = self._exchange.weights.parts[under_way.flight.fragment]
        names = {self._exchange.weights.names[place] for place in part}
        is_dense, touched = state.sieve.step.clock.plain, state.sieve.touched
        if arrived:
            state.sieve.commit()
            return names
        state.engine.clear_interrupted()
        keeps = state.config.error_feedback and not is_dense
        return names & touched if keeps else set()

    @torch.no_grad()
    def _take_over(
        self, saved: Mapping[str, Any] | None, in_residuals: set[str], *, is_new: bool
    ) -> None:
        """Take the state of the source, and keep what inner steps have added to the weights."""
        exchange, weights = self._exchange, self._exchange.weights
        departed = self._departed()
        exchange.under_way = None
        for place, (name, weight) in enumerate(zip(weights.names, weights.shards(), strict=True)):
            mine = weights.outer[place]
            outer = mine if saved is None else saved["weights"][name].to(mine.device)
            if name in in_residuals:
                before = departed.get(name)
                added = None if before is None else weight.float() - before.float()
            elif saved is None and not weights.holds(place):
                continue
            else:
                added = weight.float() - weights.start(place).to(weight.device)
            merged = outer.to(weight.device)
            weight.copy_(merged if added is None else merged + added)
            weights.hold(place, None)
            mine.copy_(outer)
        for parameter in exchange.state.sieve.parameters:
            # Pieces of sums belong to a number of ranks.
            parameter.take_over(max(1, self._size))
        if saved is None:
            return
        if is_new:
            for mine_too, theirs in zip(self._untrained(), saved["model"], strict=True):
                local(mine_too).copy_(theirs)
        weights.optimizer.load_state_dict(saved["optimizer"])
        exchange.schedule.load(saved["schedule"])
        sieve = exchange.state.sieve
        rotated = [parameter for parameter in sieve.parameters if parameter.rotation is not None]
        # A rank that missed an exchange has residuals in bases that the source has turned since.
        kept = [(parameter.bases, *parameter.unrotated()) for parameter in rotated]
        parameters = {
            parameter.name: {**saved["parameters"][parameter.name], "residual": parameter.residual}
            for parameter in sieve.parameters
        }
        sieve.load({**saved["sieve"], "parameters": parameters})
        for parameter, (bases, residual, inherited) in zip(rotated, kept, strict=True):
            if parameter.bases != bases:
                parameter.rotate_anew(residual, inherited)

    def _departed(self) -> dict[str, Tensor]:
        """Return the weights at the beginning of the exchange under way, if inner steps went on."""
        under_way = self._exchange.under_way
        if under_way is None or not under_way.flight.departed:
            return {}
        names = self._exchange.weights.names
        part = self._exchange.weights.parts[under_way.flight.fragment]
        return dict(zip((names[place] for place in part), under_way.flight.departed, strict=True))

    def _begin_anew(self) -> None:
        """Forget what was measured among the ranks before."""
        exchange, engine = self._exchange, self._exchange.state.engine
        schedule, thresholds = exchange.schedule, engine.sieve.thresholds
        schedule.ends = None
        if schedule.began == schedule.step > 0:
            # No fragment is as it was right after its exchange: `finish` exchanges all.
            schedule.began -= 1
            schedule.since = min(schedule.since, schedule.began)
        engine.loaded_place = None
        engine.sieve.forget_plans()
        engine.reports.forget()
        if thresholds.budget is not None:
            thresholds.budget.forget_ranks()
        if exchange.state.step:
            engine.topology.begin_anew()
        exchange.meet_anew()


def meet(group: ManagedGroup) -> None:
    """Let the ranks of a group meet, before anything else. All of them must call it together.

    Raises:
        ExchangeError: a rank has died or stalled.
    """
    try:
        group.meet()
    except RuntimeError as error:
        raise unreachable(group, error) from error


def membership(members: list[Member], rank: int, source: int) -> Membership:
    ahead = members[source]
    stayed = {
        number: member.rank
        for number, member in enumerate(members)
        if member.generation == ahead.generation != NEW
    }
    return Membership(
        rank=rank,
        size=len(members),
        source=source,
        joined=tuple(number for number in range(len(members)) if number not in stayed),
        left=tuple(old for old in range(ahead.size) if old not in stayed.values()),
    )
