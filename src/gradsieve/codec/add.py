"""Adding what frames carry into the averaged bucket."""

import numpy as np

from gradsieve.compiled import compiled

AT_ONCE = 8


@compiled
def add_at(total, indices, values, factor):  # type: ignore[no-untyped-def]
    """total[indices] += factor · values; the indices are known to ascend within total."""
    whole = indices.size // AT_ONCE * AT_ONCE
    for i in range(0, whole, AT_ONCE):
        # All loads before all stores: no load waits to learn whether a store hits its address.
        a, b = np.uint32(indices[i]), np.uint32(indices[i + 1])
        c, d = np.uint32(indices[i + 2]), np.uint32(indices[i + 3])
        e, f = np.uint32(indices[i + 4]), np.uint32(indices[i + 5])
        g, h = np.uint32(indices[i + 6]), np.uint32(indices[i + 7])
        at_a, at_b, at_c, at_d = total[a], total[b], total[c], total[d]
        at_e, at_f, at_g, at_h = total[e], total[f], total[g], total[h]
        total[a] = at_a + factor * values[i]
        total[b] = at_b + factor * values[i + 1]
        total[c] = at_c + factor * values[i + 2]
        total[d] = at_d + factor * values[i + 3]
        total[e] = at_e + factor * values[i + 4]
        total[f] = at_f + factor * values[i + 5]
        total[g] = at_g + factor * values[i + 6]
        total[h] = at_h + factor * values[i + 7]
    for i in range(whole, indices.size):
        total[indices[i]] += factor * values[i]
