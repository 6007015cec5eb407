"""Decide which parameters are too small to prune."""

from collections.abc import Sequence

from gradsieve.parameters.parameter import ParameterState
from gradsieve.runtime.notices import tell

LIMITS = (2048, 1024, 512, 256)
"""Candidates for `min_numel`. A pruned parameter costs a section of some 36 bytes and some calls
in each step; below the last limit pruning saves less than that."""
WHOLE_SHARE = 0.05
"""Share of the elements of a model that may travel whole, at 16 bits each, to save sections."""
NAMED = 3
"""Number of parameters that the notice names."""


def choose_min_numel(numels: Sequence[int]) -> int:
    """Return the number of elements from which parameters are pruned.

    It is the largest limit for which the whole parameters hold at most `WHOLE_SHARE` of all
    elements.

    Args:
        numels: the number of elements of each parameter.
    """
    allowed = WHOLE_SHARE * sum(numels)
    for limit in LIMITS:
        if sum(numel for numel in numels if numel < limit) <= allowed:
            return limit
    return LIMITS[-1]


def tell_of_whole(parameters: Sequence[ParameterState], min_numel: int) -> None:
    """Tell the user which parameters travel whole, if they are a large share of the model."""
    whole = [parameter for parameter in parameters if parameter.whole]
    elements, all_elements = sum(p.numel for p in whole), sum(p.numel for p in parameters)
    if elements <= WHOLE_SHARE * all_elements:
        return
    names = ", ".join(parameter.name for parameter in whole[:NAMED])
    more = ", ..." if len(whole) > NAMED else ""
    what = "nothing is pruned" if len(whole) == len(parameters) else "they are not pruned"
    tell(
        f"gradsieve: {len(whole)} of {len(parameters)} parameters, {elements / all_elements:.0%} "
        f"of all elements, have fewer than min_numel={min_numel} elements and travel whole ({names}"
        f"{more}); {what}. A smaller min_numel prunes more of them"
    )
