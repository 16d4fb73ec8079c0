"""The order in which a filter's weights are dropped, one after the other, where those that stay make up for it (optimal brain surgeon).

q = argmin over the rest of w_q^2 / (2 A_qq);    w -= (w_q / A_qq) A_:q;    A -= A_:q A_q: / A_qq;    A = H^-1 at first
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .jit import Compiler
from .keeper import Keeper

jit = Compiler(Keeper("elimination", Path(__file__).parent), fastmath={"contract"}).jit_cached


@jit
def rises(weights: NDArray, inverse: NDArray, found: NDArray) -> None:
    """weights[F,d], H^-1[d,d] -> found[F,d]: what each weight's going adds to the error, or one before it did, if that was more. float64.

    The lower triangle of A is kept, of the weights that are left; the last of them takes the place of the one that goes.
    """
    filters, inputs = weights.shape
    a, w, column, place = np.empty((inputs, inputs)), np.empty(inputs), np.empty(inputs), np.empty(inputs, np.int64)
    for f in range(filters):
        w[:], a[:] = weights[f], inverse
        for i in range(inputs):
            place[i] = i
        most = 0.0
        for last in range(inputs - 1, -1, -1):
            q, least = 0, np.inf
            for i in range(last + 1):
                rise = w[i] * w[i] / (2 * a[i, i])
                if rise < least:
                    q, least = i, rise
            most = max(most, least)
            found[f, place[q]] = most
            pivot = a[q, q]
            factor = w[q] / pivot
            column[: q + 1] = a[q, : q + 1]
            column[q : last + 1] = a[q : last + 1, q]
            w[q], place[q], column[q], a[q, q] = w[last], place[last], column[last], a[last, last]
            a[q, :q] = a[last, :q]
            a[q + 1 : last, q] = a[last, q + 1 : last]
            for i in range(last):
                w[i] -= factor * column[i]
                share, row = column[i] / pivot, a[i]
                for j in range(i + 1):
                    row[j] -= share * column[j]
