"""Which parameters are too small to prune."""

from collections.abc import Sequence

from gradsieve.parameters.parameter import ParameterState
from gradsieve.runtime.notices import tell

LIMITS = (2048, 1024, 512, 256)
"""Elements. A section of a frame takes some 36 bytes, and a parameter some calls a step: below the
last one pruning saves too little."""
WHOLE_SHARE = 0.05
"""The share of a model's elements that may travel whole, at 16 bits each, for few sections."""
NAMED = 3


def choose_min_numel(numels: Sequence[int]) -> int:
    """The number of elements from which parameters are pruned, for a model of such sizes.

    The largest limit below which small parameters hold no more than `WHOLE_SHARE` of all elements.
    """
    allowed = WHOLE_SHARE * sum(numels)
    for limit in LIMITS:
        if sum(numel for numel in numels if numel < limit) <= allowed:
            return limit
    return LIMITS[-1]


def tell_of_whole(parameters: Sequence[ParameterState], min_numel: int) -> None:
    """Say what travels whole where it is much of a model."""
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
