"""What stands for settings that are left out."""

from gradsieve.control.budget import Budget
from gradsieve.control.route import Exchange
from gradsieve.control.thresholds import Threshold


def policy_or_default(threshold: Threshold | None) -> Threshold:
    """Raises TypeError where it is no policy."""
    if threshold is None:
        return Budget("auto")
    if not hasattr(threshold, "measured"):
        raise TypeError(
            "the threshold must be a policy such as gradsieve.Density(0.01) or "
            f"gradsieve.Fixed(0.1), got {threshold!r}"
        )
    return threshold


def exchange_or_default(exchange: Exchange | None, policy: Threshold) -> Exchange:
    if exchange is not None:
        return exchange
    return "auto" if isinstance(policy, Budget) else "gather"
