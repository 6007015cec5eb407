"""Which state belongs to which parameter: named by the model, or numbered as DDP shows them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gradsieve.errors import SieveError
from gradsieve.parameters import ParameterState, SavedParameter

ANOTHER_MODEL = "make one SieveState a model"


class Registry:
    """The parameters of one model, by name.

    Without `bind` the names are known when DDP has shown its last bucket, or at once where a
    loaded state says how many parameters there are.

    Args:
        min_numel, rotation: as in `SieveState`.
    """

    def __init__(self, min_numel: int, rotation: int) -> None:
        self._min_numel, self._rotation = min_numel, rotation
        self._model: nn.Module | None = None
        self._states: dict[str, ParameterState] = {}
        self._by_id: dict[int, tuple[Tensor, ParameterState]] = {}
        self._shown: list[list[Tensor]] = []
        """The buckets of a step in which the names are not known."""
        self._awaiting: dict[str, SavedParameter] | None = None
        """A loaded state whose parameters are not all known yet."""

    def __iter__(self) -> Iterator[ParameterState]:
        return iter(self._states.values())

    @property
    def states(self) -> Mapping[str, ParameterState]:
        return self._states

    @property
    def nameless(self) -> bool:
        """This step began before the names were known."""
        return bool(self._shown)

    def known(self, parameter: Tensor) -> ParameterState | None:
        """What is kept for a parameter; None while the names are unknown."""
        found = self._by_id.get(id(parameter))
        return None if found is None else found[1]

    def end_step(self) -> None:
        self._shown = []

    def described(self, bucket: list[Tensor]) -> list[tuple[str, Tensor]]:
        """Names and parameters; while there are none, those of the first bucket, numbered."""
        known = [(state.name, own) for own, state in self._by_id.values()]
        return known or numbers_for([bucket])

    # Copies.

    @property
    def is_numbered(self) -> bool:
        """It has parameters, or a loaded state of some, and no model has named them."""
        waiting = all(name.isdecimal() for name in self._awaiting or ())
        return self._model is None and (bool(self._states) or (bool(self._awaiting) and waiting))

    def blank(self) -> "Registry":
        """One with the same settings, and no parameters yet."""
        return Registry(self._min_numel, self._rotation)

    def __getstate__(self) -> dict[str, Any]:
        """What is kept of each parameter, without the model and its parameters."""
        return self.__dict__ | {"_model": None, "_by_id": {}, "_shown": []}

    # Names.

    def bind(self, model: nn.Module, ignored: Collection[str] = ()) -> None:
        """Take the parameters and names of a model, once.

        Raises:
            SieveError: they are another model's, or numbered already.
        """
        named = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in ignored
        ]
        self.bind_named(model, named)

    def bind_named(self, model: nn.Module, named: Sequence[tuple[str, Tensor]]) -> None:
        """As `bind`, of parameters that stand for those of the model."""
        if self._model is model:
            return
        if self._model is not None:
            raise SieveError(f"this state is bound to another model already; {ANOTHER_MODEL}")
        if self._by_id or self._shown:
            raise SieveError("bind the state before the first training step, not after it")
        self._model = model
        self._keep(named)

    def meet(self, parameters: list[Tensor], *, last: bool) -> list[ParameterState]:
        """The states of a bucket's parameters, in its order; none while the names are unknown.

        Raises:
            SieveError: a parameter is of another model.
        """
        if self._model is None:
            self._number(parameters, last=last)
        if self._shown:
            return []
        return [self._state_of(parameter) for parameter in parameters]

    def _number(self, parameters: list[Tensor], *, last: bool) -> None:
        if all(id(parameter) in self._by_id for parameter in parameters):
            return
        if self._by_id and self._awaiting is None:
            raise SieveError(
                f"this state has met a parameter that is not of its model; {ANOTHER_MODEL}"
            )
        if self._awaiting is not None:
            total = len(self._awaiting) - len(self._by_id)
            self._keep(numbers_for([parameters], total), complete=last)
            return
        self._shown.append(parameters)
        if last:
            self._keep(numbers_for(self._shown))

    def _keep(self, named: Sequence[tuple[str, Tensor]], *, complete: bool = True) -> None:
        if self._awaiting is not None:
            mine = {*self._states, *(name for name, _ in named)}
            require_same_model(self._awaiting, mine if complete else mine.union(self._awaiting))
        for name, parameter in named:
            whole = parameter.numel() < self._min_numel
            state = ParameterState(name, parameter, whole=whole, rotation=self._rotation)
            self._states[name] = state
            self._by_id[id(parameter)] = (parameter, state)
        if self._awaiting is not None:
            for name, _ in named:
                self._states[name].load(self._awaiting[name])
            if complete:
                self._awaiting = None

    def _state_of(self, parameter: Tensor) -> ParameterState:
        found = self._by_id.get(id(parameter))
        if found is None:
            raise SieveError(
                f"a parameter of shape {list(parameter.shape)} is not of the model that this "
                f"state is bound to; {ANOTHER_MODEL}"
            )
        return found[1]

    # Checkpoints.

    def save(self) -> dict[str, SavedParameter]:
        if not self._states and self._awaiting is not None:
            return dict(self._awaiting)
        return {name: state.save() for name, state in self._states.items()}

    def require_fit(self, saved: Mapping[str, SavedParameter]) -> None:
        """Raise ValueError where it is of another model, as far as the parameters are known."""
        if not self._states:
            return
        require_same_model(saved, self._states)
        for name, state in self._states.items():
            state.require_fit(saved[name])

    def load(self, saved: Mapping[str, SavedParameter]) -> None:
        """What `require_fit` lets pass: now, or as soon as the parameters are known."""
        if not self._states:
            self._awaiting = dict(saved)
            return
        for name, state in self._states.items():
            state.load(saved[name])
        self._awaiting = None


def require_same_model(saved: Collection[str], mine: Collection[str]) -> None:
    missing, extra = sorted(set(mine) - set(saved)), sorted(set(saved) - set(mine))
    if missing or extra:
        raise ValueError(
            f"the saved state is of another model: it lacks {missing} and has {extra} besides"
        )


def numbers_for(
    buckets: Sequence[Sequence[Tensor]], total: int | None = None
) -> list[tuple[str, Tensor]]:
    """Names of parameters that no model has named: their place in `model.parameters()`.

    DDP's first buckets hold the parameters from the last to the first, in order within a bucket.
    With fewer buckets than all, the number of parameters must be given.
    """
    ordered = [parameter for bucket in reversed(buckets) for parameter in bucket]
    first = 0 if total is None else total - len(ordered)
    return [(str(first + place), parameter) for place, parameter in enumerate(ordered)]
