"""Name parameters as the model's own modules do, whatever the model is wrapped in."""

from collections.abc import Collection, Mapping, Sequence

from gradsieve.runtime.torch_private import WRAPPER_MODULES


def plain_names(names: Sequence[str]) -> list[str]:
    """Return names without the modules that wrappers add; unchanged if two would become one."""
    plain = []
    for name in names:
        *modules, own = name.split(".")
        kept = [module for module in modules if module not in WRAPPER_MODULES]
        plain.append(".".join([*kept, own]))
    return plain if len({*plain}) == len(plain) else [*names]


def module_prefix(names: Collection[str]) -> str:
    """Return the modules that all names lie in, such as "module.net."; empty if there are none."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*paths, strict=False):
        if len({*level}) > 1:
            break
        shared.append(level[0])
    return "".join(f"{module}." for module in shared)


def counterparts(saved: Collection[str], mine: Collection[str]) -> Mapping[str, str]:
    """Return for each of the model's names the one that was saved for it.

    They are the same, or differ by modules around the whole model on one side.

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
