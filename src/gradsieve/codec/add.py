"""Adding what frames carry into the averaged bucket."""

from gradsieve.compiled import compiled


@compiled
def add_at(total, indices, values, factor):  # type: ignore[no-untyped-def]
    """total[indices] += factor · values; the indices were checked when the frame was decoded."""
    for i in range(indices.size):
        total[indices[i]] += factor * values[i]
