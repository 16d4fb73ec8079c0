"""The order in which a filter's weights are dropped, one after the other, where those that stay make up for it (optimal brain surgeon).

q = argmin over the rest of w_q^2 / (2 A_qq);    w -= (w_q / A_qq) A_:q;    A -= A_:q A_q: / A_qq;    A = H^-1 at first

Where several weights Q go at once, Q = argmin of w_Q^T (A_QQ)^-1 w_Q / 2; whatever order they are taken away in, the rest is the same.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .jit import Compiler
from .keeper import Keeper

_COMPILER = Compiler(Keeper("elimination", Path(__file__).parent), fastmath={"contract"})
jit, part = _COMPILER.jit_cached, _COMPILER.part


@part
def _any(touched: NDArray, unit: NDArray, d: int) -> bool:
    """Whether one of its weights is in a block that has changed."""
    found = False
    for q in unit:
        found |= q >= 0 and touched[q // d]
    return found


@part
def _rise(a: NDArray, w: NDArray, row: NDArray, unit: NDArray, joint: NDArray, rest: NDArray) -> float:
    """w_Q^T (A_QQ)^-1 w_Q / 2, one weight after the other."""
    n, d, total = len(unit), a.shape[1], 0.0
    for i in range(n):
        b, p = unit[i] // d, row[unit[i] // d, unit[i] % d]
        rest[i], joint[i, i] = (w[b, p], a[b, p, p]) if unit[i] >= 0 else (0.0, 1.0)
        for j in range(i):
            alike = unit[i] >= 0 and unit[j] >= 0 and unit[j] // d == b
            q = row[b, unit[j] % d]
            joint[i, j] = (a[b, p, q] if p > q else a[b, q, p]) if alike else 0.0
    for i in range(n):
        total += rest[i] * rest[i] / (2 * joint[i, i])
        for j in range(i + 1, n):
            share = joint[j, i] / joint[i, i]
            rest[j] -= share * rest[i]
            for k in range(i + 1, j + 1):
                joint[j, k] -= share * joint[k, i]
    return total


@part
def _eliminate(a: NDArray, w: NDArray, row: NDArray, place: NDArray, q: int, last: int, column: NDArray) -> None:
    """Row q of the lower triangle A goes; the last one takes its place."""
    pivot = a[q, q]
    factor = w[q] / pivot
    column[: q + 1] = a[q, : q + 1]
    column[q : last + 1] = a[q : last + 1, q]
    w[q], column[q], a[q, q] = w[last], column[last], a[last, last]
    a[q, :q] = a[last, :q]
    a[q + 1 : last, q] = a[last, q + 1 : last]
    place[q] = place[last]
    row[place[q]] = q
    for i in range(last):
        w[i] -= factor * column[i]
        share, line = column[i] / pivot, a[i]
        for j in range(i + 1):
            line[j] -= share * column[j]


@jit
def rises(weights: NDArray, inverse: NDArray, found: NDArray) -> None:
    """weights[F,d], H^-1[d,d] -> found[F,d]: what each weight's going adds to the error, or one before it did, if that was more. float64.

    The lower triangle of A is kept, of the weights that are left; the last of them takes the place of the one that goes.
    """
    filters, inputs = weights.shape
    a, w, column = np.empty((inputs, inputs)), np.empty(inputs), np.empty(inputs)
    row, place = np.empty(inputs, np.int64), np.empty(inputs, np.int64)
    for f in range(filters):
        w[:], a[:] = weights[f], inverse
        for i in range(inputs):
            row[i] = place[i] = i
        most = 0.0
        for last in range(inputs - 1, -1, -1):
            q, least = 0, np.inf
            for i in range(last + 1):
                rise = w[i] * w[i] / (2 * a[i, i])
                if rise < least:
                    q, least = i, rise
            most = max(most, least)
            found[f, place[q]] = most
            _eliminate(a, w, row, place, q, last, column)


@jit
def rises_of_units(weights: NDArray, inverse: NDArray, units: NDArray, found: NDArray) -> None:
    """weights[F,blocks,d], H^-1[blocks,d,d], units[U,n] -> found[F,U]: `rises` of weights that go together. float64.

    units: int64, block * d + row of each weight, -1 where there is none; every weight is of one unit, those that are of none stay.
    """
    filters, blocks, d = weights.shape
    count, n = units.shape
    a, w, column = np.empty((blocks, d, d)), np.empty((blocks, d)), np.empty(d)
    row, place, left = np.empty((blocks, d), np.int64), np.empty((blocks, d), np.int64), np.empty(blocks, np.int64)
    rise, there, touched = np.empty(count), np.empty(count, np.bool_), np.empty(blocks, np.bool_)
    joint, rest = np.empty((n, n)), np.empty(n)
    for f in range(filters):
        a[:], w[:], left[:], there[:], touched[:] = inverse, weights[f], d, True, True
        for i in range(d):
            row[:, i] = i  # where a weight is, and which one a row holds
            place[:, i] = i
        most = 0.0
        for _ in range(count):
            u, least = 0, np.inf
            for v in range(count):
                if there[v]:
                    if _any(touched, units[v], d):
                        rise[v] = _rise(a, w, row, units[v], joint, rest)
                    if rise[v] < least or not there[u]:
                        u, least = v, rise[v]
            most, there[u], touched[:] = max(most, rise[u]), False, False
            found[f, u] = most
            for k in range(n):
                if units[u, k] >= 0:
                    b, i = units[u, k] // d, units[u, k] % d
                    touched[b], left[b] = True, left[b] - 1
                    _eliminate(a[b], w[b], row[b], place[b], row[b, i], left[b], column)
