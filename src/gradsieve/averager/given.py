"""The parameters that the user has given an `Averager`, and their gradients."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradsieve.bucket.requirements import require_dtype, require_no_flat_parameter, require_strided
from gradsieve.bucket.shards import is_shard, local, placements_of
from gradsieve.errors import SieveError
from gradsieve.saved.parameter_names import plain_names

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]]
TAKES = "Averager takes parameters or pairs of name and parameter, as model.named_parameters()"


class Given:
    """The parameters in the order of the user. Frozen ones are not exchanged.

    Args:
        parameters: tensors, or pairs of a name and a tensor. Tensors without a name are numbered.

    Raises:
        TypeError: `parameters` is something else.
        ValueError: no parameter is trained, or a parameter or a name comes twice.
        SieveError: a trained parameter has an unsupported dtype, or FSDP has packed it with others.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.all = named(parameters)
        self.trained = [
            (place, parameter)
            for place, (_, parameter) in enumerate(self.all)
            if parameter.requires_grad or not isinstance(parameter, nn.Parameter)
        ]
        trained = {place for place, _ in self.trained}
        self._frozen = [entry for place, entry in enumerate(self.all) if place not in trained]
        if not self.trained:
            raise ValueError("Averager: no parameter is trained (requires_grad is False of all)")
        self.names = plain_names([self.all[place][0] for place, _ in self.trained])
        require_distinct(self.names, [parameter for _, parameter in self.all])
        for name, parameter in self.named:
            require_dtype(f"parameter {name}", parameter)
            require_no_flat_parameter(name, parameter)
        self.held = [local(parameter) for _, parameter in self.trained]
        """What this rank holds of each trained parameter, in the memory of the parameter."""

    @property
    def named(self) -> list[tuple[str, Tensor]]:
        """The names and trained parameters."""
        return [(name, p) for name, (_, p) in zip(self.names, self.trained, strict=True)]

    def require_as_before(self) -> None:
        """Raise SieveError if a parameter was unfrozen, or is not the one that is trained."""
        for name, parameter in self._frozen:
            if parameter.requires_grad:
                raise SieveError(
                    f"parameter {name} is trained now and was frozen when the Averager was made: "
                    "the ranks would diverge. Make a new Averager with it"
                )
        for name, (_, parameter), held in zip(self.names, self.trained, self.held, strict=True):
            now = local(parameter)
            if now.numel() and not now.untyped_storage().nbytes():
                raise SieveError(
                    f"parameter {name} has no memory any more: FSDP had gathered it when the "
                    "Averager was made, as an evaluation leaves it, and trains another tensor. "
                    "Call model.reshard(), and make a new Averager then"
                )
            if (now.shape, now.dtype, now.device) != (held.shape, held.dtype, held.device):
                raise SieveError(
                    f"parameter {name} was {list(held.shape)} {held.dtype} on {held.device} when "
                    f"the Averager was made, and is {list(now.shape)} {now.dtype} on {now.device} "
                    "now: make the Averager after the model has its final place and dtype"
                )
            if now.data_ptr() != held.data_ptr():
                held.data = now

    def gradients(self, given: list[Tensor | None] | None) -> list[Tensor | None]:
        """Return what this rank holds of each trained parameter's gradient.

        Args:
            given: a gradient for each parameter that the Averager was given; None takes ``.grad``.

        Raises:
            TypeError, ValueError: `given` does not fit.
            SieveError: a gradient is sparse, or is laid out otherwise than its parameter.
        """
        if given is None:
            return [self.gradient(number) for number in range(len(self.trained))]
        if not isinstance(given, list):
            raise TypeError(f"gradients must be a list, got {type(given).__name__}")
        if len(given) != len(self.all):
            raise ValueError(
                f"gradients must hold one for each of the {len(self.all)} parameters that the "
                f"Averager was given, in their order, got {len(given)}"
            )
        found = [
            None if (gradient := given[place]) is None else held_gradient(name, gradient, parameter)
            for name, (place, parameter) in zip(self.names, self.trained, strict=True)
        ]
        require_own_memory(self.names, found)
        return found

    def gradient(self, number: int) -> Tensor | None:
        """Return what this rank holds of the gradient of one trained parameter."""
        _, parameter = self.trained[number]
        gradient = parameter.grad
        if gradient is None:
            return None
        return held_gradient(self.names[number], gradient, parameter)

    def set_gradient(self, number: int, given: list[Tensor | None] | None) -> Tensor:
        """Make a gradient where there was none, and return what this rank holds of it."""
        place, parameter = self.trained[number]
        made = torch.empty_like(parameter, requires_grad=False)
        if given is None:
            parameter.grad = made
        else:
            given[place] = made
        return local(made)


def named(parameters: Any) -> list[tuple[str, Tensor]]:
    if isinstance(parameters, (nn.Module, Tensor, str, dict)) or not isinstance(
        parameters, Iterable
    ):
        raise TypeError(f"{TAKES}, got {type(parameters).__name__}")
    found: list[tuple[str, Tensor]] = []
    for place, entry in enumerate(parameters):
        name, parameter = (str(place), entry) if isinstance(entry, Tensor) else pair(entry)
        found.append((name, parameter))
    return found


def pair(entry: Any) -> tuple[str, Tensor]:
    match entry:
        case (str(name), Tensor() as parameter):
            return name, parameter
    raise TypeError(f"{TAKES}, got an entry of type {type(entry).__name__}")


def require_distinct(names: Sequence[str], parameters: Sequence[Tensor]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"Averager: several parameters have the name {min(twice)}")
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        raise ValueError("Averager: a parameter is given twice")


def held_gradient(name: str, gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return what this rank holds of a gradient, in its own memory."""
    if not isinstance(gradient, Tensor):
        raise TypeError(f"the gradient of parameter {name} is a {type(gradient).__name__}")
    require_strided(f"parameter {name}", gradient)
    if is_shard(gradient) and is_shard(parameter):
        theirs, mine = placements_of(gradient), placements_of(parameter)
        if theirs != mine:
            raise SieveError(
                f"the gradient of parameter {name} is placed as {theirs} and the parameter as "
                f"{mine}: redistribute the gradient first"
            )
    held, wanted = local(gradient), local(parameter)
    if held.shape != wanted.shape:
        raise ValueError(
            f"the gradient of parameter {name} is {list(held.shape)}, the parameter "
            f"{list(wanted.shape)}"
        )
    return held


def require_own_memory(names: Sequence[str], gradients: Sequence[Tensor | None]) -> None:
    """Raise ValueError if an average could not be written into its gradient alone."""
    owners: dict[int, str] = {}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None or not gradient.numel():
            continue
        sizes = zip(gradient.shape, gradient.stride(), strict=True)
        if any(size > 1 and stride == 0 for size, stride in sizes):
            raise ValueError(
                f"the gradient of parameter {name} is expanded, and has fewer elements in memory "
                "than its shape: give gradient.contiguous()"
            )
        other = owners.setdefault(gradient.data_ptr(), name)
        if other != name:
            raise ValueError(
                f"the gradients of parameters {other} and {name} share memory: give a clone of one"
            )
