"""The bases that the ranks of one process share, to save memory.

Bases are the same on all ranks.
"""

from collections.abc import Sequence

from gradsieve.bucket.rank_sieve import RankSieve


def share_bases(sieves: Sequence[RankSieve]) -> None:
    """Let all sieves use the bases of the first. `turn_shared` must turn them then."""
    for of_ranks in zip(*(sieve.parameters for sieve in sieves), strict=True):
        for parameter in of_ranks[1:]:
            parameter.rotation = of_ranks[0].rotation


def turn_shared(sieves: Sequence[RankSieve]) -> None:
    """Turn the shared bases, and with them what the ranks keep, where it is time."""
    for of_ranks in zip(*(sieve.parameters for sieve in sieves), strict=True):
        rotation = of_ranks[0].rotation
        if rotation is not None and rotation.is_due:
            for parameter in of_ranks:
                parameter.take_over(len(sieves))
            rotation.turn([flat for parameter in of_ranks for flat in parameter.coefficients])
