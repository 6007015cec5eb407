"""Add the values of a frame to the averaged bucket."""

import numpy as np

from gradsieve.runtime.compiled import compiled

UINT = np.uint64
AT_ONCE = 8


@compiled
def add_at(total, indices, values, factor):  # type: ignore[no-untyped-def]
    """Compute total[indices] += factor · values, both operations rounded.

    total: float32; indices: int32 [N], known to be all different and within `total`; factor:
    float32; values: float32 [N].
    """
    whole = indices.size // AT_ONCE * AT_ONCE
    for start in range(0, whole, AT_ONCE):
        # Unsigned, since numba tests signed indices for being negative, to count from the end.
        i = UINT(start)
        # All loads come before all stores, so that no load waits for a store whose address may be
        # the same.
        a, b = np.uint32(indices[i]), np.uint32(indices[i + UINT(1)])
        c, d = np.uint32(indices[i + UINT(2)]), np.uint32(indices[i + UINT(3)])
        e, f = np.uint32(indices[i + UINT(4)]), np.uint32(indices[i + UINT(5)])
        g, h = np.uint32(indices[i + UINT(6)]), np.uint32(indices[i + UINT(7)])
        at_a, at_b, at_c, at_d = total[a], total[b], total[c], total[d]
        at_e, at_f, at_g, at_h = total[e], total[f], total[g], total[h]
        total[a] = at_a + factor * values[i]
        total[b] = at_b + factor * values[i + UINT(1)]
        total[c] = at_c + factor * values[i + UINT(2)]
        total[d] = at_d + factor * values[i + UINT(3)]
        total[e] = at_e + factor * values[i + UINT(4)]
        total[f] = at_f + factor * values[i + UINT(5)]
        total[g] = at_g + factor * values[i + UINT(6)]
        total[h] = at_h + factor * values[i + UINT(7)]
    for i in range(whole, indices.size):
        total[indices[i]] += factor * values[i]
