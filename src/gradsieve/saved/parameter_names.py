"""Match the names of parameters, whatever wrappers the model had when it was saved."""

from collections.abc import Collection, Mapping, Sequence

from gradsieve.runtime.torch_private import WRAPPER_MODULES


def plain_names(names: Sequence[str]) -> list[str]:
    """Return names without the modules that wrappers add.

    If two names would become equal, all names are returned unchanged.
    """
    plain = []
    for name in names:
        *modules, own = name.split(".")
        kept = [module for module in modules if module not in WRAPPER_MODULES]
        plain.append(".".join([*kept, own]))
    return plain if len({*plain}) == len(plain) else [*names]


def module_prefix(names: Collection[str]) -> str:
    """Return the modules that contain all names, such as "module.net."; empty if there are none."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*paths, strict=False):
        if len({*level}) > 1:
            break
        shared.append(level[0])
    return "".join(f"{module}." for module in shared)


def counterparts(saved: Collection[str], mine: Collection[str]) -> Mapping[str, str]:
    """Return the saved name for each name of the model.

    The names are the same, or one side has more modules around the whole model.

    Raises:
        ValueError: the saved state is of another model.
    """
    if {*saved} == {*mine}:
        return {name: name for name in mine}
    theirs, ours = module_prefix(saved), module_prefix(mine)
    is_around = f".{ours}".endswith(f".{theirs}") or f".{theirs}".endswith(f".{ours}")
    stripped = {name.removeprefix(theirs): name for name in saved}
    matched = {name: stripped.get(name.removeprefix(ours)) for name in mine}
    found = {name: other for name, other in matched.items() if other is not None}
    if is_around and len(found) == len(mine) == len(saved):
        return found
    missing, extra = sorted({*mine} - {*saved}), sorted({*saved} - {*mine})
    raise ValueError(
        f"the saved state is of another model: it lacks {missing} and has {extra} besides"
    )
