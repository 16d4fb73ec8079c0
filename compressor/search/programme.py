"""Which level each layer gets: the least error within a budget.

    min over levels s_l of  sum_l e[l][s_l]     subject to     sum_l t[l][s_l] <= T

    D_l[b] = min over s of  D_{l-1}[b - b(l,s)] + e[l][s],      b(l,s) = ceil(t[l][s] / (T / BUCKETS))

Source: the dynamic programmes of SPDY (Frantar and Alistarh, arXiv 2201.13096) and HALP (arXiv 2110.10811). A bucket is
rounded up, so that what is found keeps the budget, by at most a part of layers / BUCKETS less than it could.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BUCKETS = 10_000


def solve(times: Sequence[Floats], errors: Sequence[Floats], budget: float) -> list[int] | None:
    """The level of each layer, from times[l] and errors[l] of its levels; None where the fastest levels take longer than `budget` > 0.

    Of levels that are equally good the first is taken. Times are at least 0, of any unit (seconds, multiply-adds); errors are finite.
    """
    if sum(float(of_layer.min()) for of_layer in times) > budget:
        return None
    least, chosen = np.full(BUCKETS + 1, np.inf), []
    least[0] = 0.0  # at exactly b buckets
    for of_layer, error in zip(times, errors, strict=True):
        buckets = np.ceil(of_layer / budget * BUCKETS - 1e-9).astype(int)
        found, level = np.full_like(least, np.inf), np.zeros(len(least), np.int16)
        for number, (width, cost) in enumerate(zip(buckets, error, strict=True)):
            if width > BUCKETS:
                continue
            moved = least[: len(least) - width] + cost
            better = moved < found[width:]
            found[width:][better] = moved[better]
            level[width:][better] = number
        least = found
        chosen.append((buckets, level))
    if not np.isfinite(least).any():  # only by rounding up
        return [int(of_layer.argmin()) for of_layer in times]
    place, levels = int(least.argmin()), []
    for buckets, level in reversed(chosen):
        levels.append(int(level[place]))
        place -= int(buckets[levels[-1]])
    return levels[::-1]
