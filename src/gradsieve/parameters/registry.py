"""The registry finds the state of each parameter.

The model names the parameters. A state that is not bound to a model numbers them as DDP shows its
buckets.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradsieve.errors import SieveError
from gradsieve.parameters.parameter import ParameterState
from gradsieve.parameters.saving import (
    SavedParameter,
    load_parameter,
    require_parameter_fits,
    save_parameter,
)
from gradsieve.parameters.small import choose_min_numel, tell_of_whole
from gradsieve.saved.parameter_names import counterparts, module_prefix, plain_names
from gradsieve.saved.seal import crc_of
from gradsieve.saved.sieve import require_weights

ANOTHER_MODEL = "make one SieveState a model"


class Loaded(NamedTuple):
    """A loaded state, some of whose parameters are not known yet."""

    parameters: Mapping[str, SavedParameter]
    weights: Mapping[str, int]
    """Checksums of the parameters of the model when the state was saved."""


class Registry:
    """The parameters of one model, by name.

    Without `bind`, the names are known once DDP has shown its last bucket, or at once if a loaded
    state tells the number of parameters.

    Args:
        min_numel, rotation: see `SieveConfig`.
    """

    def __init__(self, min_numel: int | None, rotation: int) -> None:
        self.min_numel = min_numel
        """Number of elements below which a parameter travels whole. None until it is chosen for
        the known parameters, or taken from a loaded state."""
        self._rotation = rotation
        self.compared: frozenset[str] = frozenset()
        """Names of the parameters whose weights the ranks compare when they meet."""
        self.can_undo = True
        """Whether a step can be undone."""
        self.tells_own = False
        """Whether `ParameterState.unsent` tells what is the rank's own."""
        self._model: object | None = None
        self._states: dict[str, ParameterState] = {}
        self._by_id: dict[int, tuple[Tensor, ParameterState]] = {}
        self._shown: list[list[Tensor]] = []
        """The buckets of the running step, while the names are unknown."""
        self._awaiting: Loaded | None = None
        self._unproven: Mapping[str, int] = {}
        """Checksums that the parameters must have, if a state was loaded before they were known."""

    def __iter__(self) -> Iterator[ParameterState]:
        return iter(self._states.values())

    @property
    def states(self) -> Mapping[str, ParameterState]:
        return self._states

    @property
    def nameless(self) -> bool:
        """Whether this step began before the names were known."""
        return bool(self._shown)

    def known(self, parameter: Tensor) -> ParameterState | None:
        """Return the state of a parameter; None while the names are unknown."""
        found = self._by_id.get(id(parameter))
        return None if found is None else found[1]

    def may_have(self, parameter: Tensor) -> bool:
        """Return whether a parameter is one of the model; True while its parameters are unknown."""
        return not self._by_id or id(parameter) in self._by_id

    def end_step(self) -> None:
        self._shown = []

    def described(self, bucket: list[Tensor]) -> list[tuple[str, Tensor]]:
        """Return the names and parameters; without any yet, those of the first bucket, numbered."""
        known = [(state.name, own) for own, state in self._by_id.values()]
        return known or numbers_for([bucket])

    # Copies.

    @property
    def is_numbered(self) -> bool:
        """Whether there are parameters, or a loaded state of some, that no model has named."""
        awaited = () if self._awaiting is None else self._awaiting.parameters
        numbered = bool(awaited) and all(name.isdecimal() for name in awaited)
        return self._model is None and (bool(self._states) or numbered)

    def blank(self) -> "Registry":
        """Return a registry with the same options and no parameters."""
        return Registry(self.min_numel, self._rotation)

    def __getstate__(self) -> dict[str, Any]:
        """Return the content of a copy: the states, without the model and its parameters."""
        return self.__dict__ | {"_model": None, "_by_id": {}, "_shown": []}

    # Names.

    def bind(self, model: nn.Module, ignored: Collection[str] = ()) -> None:
        """Take the parameters and names of a model, once.

        Args:
            ignored: the names of parameters that are not exchanged.

        Raises:
            SieveError: the registry belongs to another model or has numbered its parameters.
            ValueError: the state of another model was loaded.
        """
        named = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in ignored
        }
        self.bind_named(model, list(zip(plain_names([*named]), named.values(), strict=True)))

    def bind_named(self, model: object, named: Sequence[tuple[str, Tensor]]) -> None:
        """Take parameters that stand for those of the model. Raises what `bind` raises."""
        if self._model is model:
            return
        if self._model is not None:
            raise SieveError(f"this state is bound to another model already; {ANOTHER_MODEL}")
        if self._by_id or self._shown:
            raise SieveError("bind the state before the first training step, not after it")
        self._register(named)
        self._model = model

    def states_of(self, parameters: list[Tensor], *, last: bool) -> list[ParameterState]:
        """Return the states of a bucket's parameters, in its order; none while names are unknown.

        Args:
            last: whether it is the last bucket of the step.

        Raises:
            SieveError: a parameter belongs to another model.
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
            total = len(self._awaiting.parameters) - len(self._by_id)
            self._register(numbers_for([parameters], total), complete=last)
            return
        self._shown.append(parameters)
        if last:
            self._register(numbers_for(self._shown))

    def _register(self, named: Sequence[tuple[str, Tensor]], *, complete: bool = True) -> None:
        if self.min_numel is None:
            self.min_numel = choose_min_numel([parameter.numel() for _, parameter in named])
        prefix = module_prefix([name for name, _ in named])
        made = []
        for name, parameter in named:
            state = ParameterState(
                name,
                parameter,
                whole=parameter.numel() < self.min_numel,
                rotation=self._rotation,
                can_undo=self.can_undo,
                tells_own=self.tells_own,
            )
            state.label = name.removeprefix(prefix)
            made.append((parameter, state))
        self._load_awaited([state for _, state in made], complete=complete)
        for parameter, state in made:
            self._states[state.name] = state
            self._by_id[id(parameter)] = (parameter, state)
        if complete:
            tell_of_whole(list(self), self.min_numel)

    def _load_awaited(self, made: Sequence[ParameterState], *, complete: bool) -> None:
        """Load the awaited state into new parameters. If they do not fit, nothing changes."""
        if self._awaiting is None:
            return
        parameters, weights = self._awaiting
        mine = [*self._states, *(state.name for state in made)]
        names = counterparts(parameters, mine if complete else {*mine, *parameters})
        for state in made:
            require_parameter_fits(state, parameters[names[state.name]])
        for state in made:
            load_parameter(state, parameters[names[state.name]])
        self._unproven = {name: weights[names[name]] for name in mine}
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

    def weights(self) -> dict[str, int] | None:
        """Return a checksum of each parameter; None while there are none."""
        found = {state.name: crc_of(parameter) for parameter, state in self._by_id.values()}
        awaited = {} if self._awaiting is None else self._awaiting.weights
        return {**awaited, **found} or None

    def save(self) -> dict[str, SavedParameter]:
        awaited = {} if self._awaiting is None else self._awaiting.parameters
        return {**awaited, **{name: save_parameter(s) for name, s in self._states.items()}}

    def require_fit(
        self,
        saved: Mapping[str, SavedParameter],
        saved_weights: Mapping[str, int] | None,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        """Raise ValueError if a saved state is of another model, as far as parameters are known.

        Args:
            weights: the checksums that the parameters will have; None takes those that they have.
        """
        if not self._is_complete:
            return
        names = counterparts(saved, self._states)
        for name, state in self._states.items():
            require_parameter_fits(state, saved[names[name]])
        mine = self.weights() if weights is None else weights
        if saved_weights is not None and mine is not None:
            require_weights({name: saved_weights[names[name]] for name in mine}, mine)

    def require_awaited(self, first: list[Tensor]) -> None:
        """Raise ValueError if the awaited state is of another model or of other weights.

        The first bucket of a step shows only some of the parameters; only they are compared.
        """
        if self._awaiting is not None:
            if not all(name.isdecimal() for name in self._awaiting.parameters):
                raise ValueError(
                    "the loaded state is of a model's names, or of another model, and this one is "
                    "bound to none: call state.bind(model) before the first step"
                )
            named = numbers_for([first], len(self._awaiting.parameters))
            counterparts(self._awaiting.parameters, {*self._awaiting.parameters, *dict(named)})
            require_weights(
                self._awaiting.weights, {name: crc_of(parameter) for name, parameter in named}
            )
        elif self._unproven:
            require_weights(self._unproven, self.weights() or {})
            self._unproven = {}

    def load(
        self, saved: Mapping[str, SavedParameter], saved_weights: Mapping[str, int] | None
    ) -> None:
        """Load a state that has passed `require_fit`, now or once the parameters are known."""
        if not self._is_complete:
            self._states, self._by_id = {}, {}
            self._awaiting = Loaded(dict(saved), saved_weights or {}) if saved else None
            return
        names = counterparts(saved, self._states)
        for name, state in self._states.items():
            load_parameter(state, saved[names[name]])
        self._unproven = {}

    @property
    def _is_complete(self) -> bool:
        """Whether all parameters are known."""
        return bool(self._states) and self._awaiting is None


def numbers_for(
    buckets: Sequence[Sequence[Tensor]], total: int | None = None
) -> list[tuple[str, Tensor]]:
    """Return parameters with numbers for names: their places in `model.parameters()`.

    The first buckets of DDP hold the parameters from the last to the first, in order within each
    bucket.

    Args:
        total: the number of all parameters, if `buckets` are not all buckets.
    """
    ordered = [parameter for bucket in reversed(buckets) for parameter in bucket]
    first = 0 if total is None else total - len(ordered)
    return [(str(first + place), parameter) for place, parameter in enumerate(ordered)]
