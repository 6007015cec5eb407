"""Fragments: the parts of a model that take turns."""

from collections.abc import Sequence


def split_alike(numels: Sequence[int], fragments: int) -> list[list[int]]:
    """Divide parameters into fragments of about the same size.

    The largest parameters are assigned first, each to the smallest fragment so far. Neighbours in
    the model usually fall into different fragments.

    Args:
        numels: the number of elements of each parameter.

    Returns:
        For each fragment, the indices of its parameters, ascending.

    Raises:
        ValueError: there are more fragments than parameters.
    """
    if fragments > len(numels):
        raise ValueError(f"{fragments} fragments of a model of {len(numels)} parameters")
    parts: list[list[int]] = [[] for _ in range(fragments)]
    sizes = [0] * fragments
    for place in sorted(range(len(numels)), key=lambda place: -numels[place]):
        least = sizes.index(min(sizes))
        parts[least].append(place)
        # An empty parameter counts as 1, so that no fragment stays without parameters.
        sizes[least] += max(1, numels[place])
    return [sorted(part) for part in parts]
