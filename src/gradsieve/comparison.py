"""Compare the ranks before their first step."""

from gradsieve.bucket.bucket import Bucket
from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.exchange.agreement import Description, require_agreement
from gradsieve.exchange.groups import Groups
from gradsieve.saved.sieve import require_own_place


def compare_ranks(
    sieve: RankSieve, groups: Groups, first: Bucket, loaded_place: tuple[int, int] | None
) -> None:
    """Meet the other ranks, and require that they train the same model with the same options.

    All ranks call it together.

    Args:
        first: the first bucket of this rank.
        loaded_place: the rank and the world size of the state that was loaded; None if none was.

    Raises:
        SieveError: on every rank, where the ranks differ.
        ValueError: the state that was loaded is that of another rank or model.
    """
    if not sieve.stands_for_weights:
        groups.require_all_ranks(first.buffer())
    fault = "" if loaded_place is None else fault_of_loaded(sieve, groups, first, loaded_place)
    compared = sieve.parameters.compared
    weights = (sieve.parameters.weights() or {}) if compared else {}
    mine = Description(
        settings=(
            *sieve.settings,
            f"step={sieve.step_number}",
            f"state loaded={fault or loaded_place is not None}",
        ),
        parameters=tuple(
            f"{n} {list(p.shape)} {p.dtype}"
            + (f" with weights of checksum {weights[n]:08x}" if n in compared else "")
            for n, p in sieve.parameters.described(first.parameters())
        ),
    )
    require_agreement(mine, groups.group)
    if fault:
        raise ValueError(fault)


def fault_of_loaded(
    sieve: RankSieve, groups: Groups, first: Bucket, loaded_place: tuple[int, int]
) -> str:
    """Return why the loaded state does not fit this rank and model; empty if it fits."""
    try:
        require_own_place(*loaded_place, *groups.own_place)
        sieve.parameters.require_awaited(first.parameters())
    except ValueError as error:
        return str(error)
    return ""
