"""Two LSTM layers and a linear read-out of the second, compiled: what they predict, a rollout on their own outputs, a step of Adam.

    i, f, o = sigmoid(x W_in + h W_h + b),  g = tanh(the same);  c' = f c + i g;  h' = o tanh(c')

Such small networks are bound by the dispatch of their many small operations, so each request is one compiled function. All arrays are
float32 and one thread computes, whatever the libraries' settings. In shapes: N sequences, L time steps, I inputs, H hidden units, G = 4H
gates in torch's order i, f, g, o. Weights come as the parts that `compiled_lstm.split` makes of their vector.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.jit import Compiler
from fineprune.ops.keeper import Keeper

Array = NDArray[np.float32]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as torch has them."""
_TANH_LIMIT = np.float32(7.905311)
"""float32's tanh is 1 from here on."""
_TANH_ABOVE = tuple(
    np.float32(value)
    for value in (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-8, 1.48572235717979e-5,
                  6.37261928875436e-4, 4.89352455891786e-3)
)  # fmt: skip
_TANH_BELOW = tuple(np.float32(value) for value in (1.19825839466702e-6, 1.18534705686654e-4, 2.26843463243900e-3, 4.89352518554385e-3))
"""tanh x = x P(x^2) / Q(x^2), highest power first, within 2e-7: Eigen's coefficients. LLVM vectorises it, a call of tanh it does not."""
_HALF, _ONE = np.float32(0.5), np.float32(1)


_jit = Compiler(Keeper("lstm", Path(__file__).parent), fastmath={"reassoc", "contract", "nsz", "arcp"}).jit_cached


@_jit
def _multiply_add(y_NJ: Array, x_NK: Array, w_KJ: Array) -> None:
    """y += x w, with eight rows of w in the first-level cache at a time."""
    rows, inner = x_NK.shape
    for k in range(0, inner - inner % 8, 8):
        w0, w1, w2, w3, w4, w5, w6, w7 = w_KJ[k], w_KJ[k + 1], w_KJ[k + 2], w_KJ[k + 3], w_KJ[k + 4], w_KJ[k + 5], w_KJ[k + 6], w_KJ[k + 7]
        for n in range(rows):
            x0, x1, x2, x3 = x_NK[n, k], x_NK[n, k + 1], x_NK[n, k + 2], x_NK[n, k + 3]
            x4, x5, x6, x7 = x_NK[n, k + 4], x_NK[n, k + 5], x_NK[n, k + 6], x_NK[n, k + 7]
            y = y_NJ[n]
            for j in range(len(y)):
                y[j] += (x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]) + (x4 * w4[j] + x5 * w5[j] + x6 * w6[j] + x7 * w7[j])
    for k in range(inner - inner % 8, inner):
        for n in range(rows):
            x, w, y = x_NK[n, k], w_KJ[k], y_NJ[n]
            for j in range(len(y)):
                y[j] += x * w[j]


@_jit
def _multiply_transposed(x_NK: Array, y_NJ: Array, w_KJ: Array) -> None:
    """x = y w^T, four rows of w at a time (every H is a multiple of four or small)."""
    rows, inner = x_NK.shape
    for k in range(0, inner - inner % 4, 4):
        w0, w1, w2, w3 = w_KJ[k], w_KJ[k + 1], w_KJ[k + 2], w_KJ[k + 3]
        for n in range(rows):
            y = y_NJ[n]
            s0 = s1 = s2 = s3 = np.float32(0)
            for j in range(len(y)):
                s0 += y[j] * w0[j]
                s1 += y[j] * w1[j]
                s2 += y[j] * w2[j]
                s3 += y[j] * w3[j]
            x_NK[n, k], x_NK[n, k + 1], x_NK[n, k + 2], x_NK[n, k + 3] = s0, s1, s2, s3
    for k in range(inner - inner % 4, inner):
        for n in range(rows):
            s0 = np.float32(0)
            for j in range(y_NJ.shape[1]):
                s0 += y_NJ[n, j] * w_KJ[k, j]
            x_NK[n, k] = s0


@_jit
def _tanh(x: Any) -> Any:
    x = min(max(x, -_TANH_LIMIT), _TANH_LIMIT)
    square = x * x
    above, below = _TANH_ABOVE[0], _TANH_BELOW[0]
    for k in range(1, 7):
        above = above * square + _TANH_ABOVE[k]
    for k in range(1, 4):
        below = below * square + _TANH_BELOW[k]
    return x * above / below


@_jit
def _activate(gates_G: Array, before_H: Array, c_H: Array, tanh_c_H: Array, h_H: Array) -> None:
    """A cell: sums become gates in place; before: the cell state of the step before, which may be c itself."""
    size = len(c_H)
    i, f, g, o = gates_G[:size], gates_G[size : 2 * size], gates_G[2 * size : 3 * size], gates_G[3 * size :]
    for k in range(size):
        i[k] = _HALF + _HALF * _tanh(_HALF * i[k])
        f[k] = _HALF + _HALF * _tanh(_HALF * f[k])
        g[k] = _tanh(g[k])
        o[k] = _HALF + _HALF * _tanh(_HALF * o[k])
        c_H[k] = f[k] * before_H[k] + i[k] * g[k]
        tanh_c_H[k] = _tanh(c_H[k])
        h_H[k] = o[k] * tanh_c_H[k]


@_jit
def _layer(x_LNI: Array, w_in: Array, w_h: Array, b_in: Array, b_h: Array) -> tuple[Array, Array, Array, Array]:
    """A layer over all time steps from a state of zero: gates [L,N,G], and c, tanh c and h [L,N,H]."""
    length, count, _ = x_LNI.shape
    size = w_h.shape[0]
    gates = np.empty((length, count, 4 * size), np.float32)
    c = np.empty((length, count, size), np.float32)
    tanh_c, h = np.empty_like(c), np.empty_like(c)
    gates[:] = b_in + b_h
    _multiply_add(gates.reshape(length * count, 4 * size), x_LNI.reshape(length * count, x_LNI.shape[2]), w_in)
    zero = np.zeros(size, np.float32)
    for t in range(length):
        if t > 0:
            _multiply_add(gates[t], h[t - 1], w_h)
        for n in range(count):
            _activate(gates[t, n], c[t - 1, n] if t > 0 else zero, c[t, n], tanh_c[t, n], h[t, n])
    return gates, c, tanh_c, h


@_jit
def _layer_gradient(dh_LNH: Array, gates: Array, c: Array, tanh_c: Array, w_h: Array) -> None:
    """Back through time: `gates` become the gradient of the sums that they were made of. dh_LNH: from above; it is overwritten."""
    length, count, size = dh_LNH.shape
    dc_NH = np.zeros((count, size), np.float32)
    through = np.zeros((count, size), np.float32)
    zero = np.zeros(size, np.float32)
    for t in range(length - 1, -1, -1):
        for n in range(count):
            gate, tanh, dh, dc, late = gates[t, n], tanh_c[t, n], dh_LNH[t, n], dc_NH[n], through[n]
            before = c[t - 1, n] if t > 0 else zero
            i, f, g, o = gate[:size], gate[size : 2 * size], gate[2 * size : 3 * size], gate[3 * size :]
            for k in range(size):
                whole = dh[k] + late[k]
                cell = dc[k] + whole * o[k] * (_ONE - tanh[k] * tanh[k])
                o[k] = whole * tanh[k] * o[k] * (_ONE - o[k])
                dc[k] = cell * f[k]
                f[k] = cell * before[k] * f[k] * (_ONE - f[k])
                di = cell * g[k] * i[k] * (_ONE - i[k])
                g[k] = cell * i[k] * (_ONE - g[k] * g[k])
                i[k] = di
        if t > 0:
            _multiply_transposed(through, gates[t], w_h)


@_jit
def _weight_gradient(dw_KG: Array, x_SK: Array, dgates_SG: Array) -> None:
    dw_KG[:] = 0
    _multiply_add(dw_KG, x_SK.T, dgates_SG)


@_jit
def _bias_gradient(db_in_G: Array, db_h_G: Array, dgates_SG: Array) -> None:
    db_in_G[:] = 0
    for row in dgates_SG:
        db_in_G += row
    db_h_G[:] = db_in_G


@_jit
def gradient(x_LNI: Array, y_LN: Array, w: Any, dw: Any) -> float:
    """Mean squared error of the values after each prefix, and into `dw` its gradient."""
    length, count, inputs = x_LNI.shape
    samples = length * count
    gates1, c1, tanh1, h1 = _layer(x_LNI, w[0], w[1], w[2], w[3])
    gates2, c2, tanh2, h2 = _layer(h1, w[4], w[5], w[6], w[7])
    size = h1.shape[2]
    dh = np.empty_like(h2)
    dw[8][:] = 0
    dw[9][:] = 0
    loss = 0.0
    for t in range(length):
        for n in range(count):
            value = w[9][0]
            for k in range(size):
                value += h2[t, n, k] * w[8][k]
            error = value - y_LN[t, n]
            loss += error * error / samples
            slope = np.float32(2 * error / samples)
            dw[9][0] += slope
            for k in range(size):
                dw[8][k] += slope * h2[t, n, k]
                dh[t, n, k] = slope * w[8][k]
    _layer_gradient(dh, gates2, c2, tanh2, w[5])
    _multiply_transposed(dh.reshape(samples, size), gates2.reshape(samples, 4 * size), w[4])
    _layer_gradient(dh, gates1, c1, tanh1, w[1])
    x = x_LNI.reshape(samples, inputs)
    late, early = samples - count, count
    flat1, flat2 = gates1.reshape(samples, 4 * size), gates2.reshape(samples, 4 * size)
    flat_h1, flat_h2 = h1.reshape(samples, size), h2.reshape(samples, size)
    _weight_gradient(dw[0], x, flat1)
    _weight_gradient(dw[1], flat_h1[:late], flat1[early:])
    _weight_gradient(dw[4], flat_h1, flat2)
    _weight_gradient(dw[5], flat_h2[:late], flat2[early:])
    _bias_gradient(dw[2], dw[3], flat1)
    _bias_gradient(dw[6], dw[7], flat2)
    return loss


@_jit
def adam(weights: Array, moments: Array, grad: Array, step: int, rate: float, limit: float) -> None:
    """Adam's step number `step` (from 1) with a gradient of at most the norm `limit`; moments: [2,P]."""
    squares = np.float32(0)
    for k in range(len(grad)):
        squares += grad[k] * grad[k]
    factor = np.float32(min(1.0, limit / (np.sqrt(squares) + 1e-6)))
    keep1, keep2 = np.float32(_BETAS[0]), np.float32(_BETAS[1])
    new1, new2 = np.float32(1 - _BETAS[0]), np.float32(1 - _BETAS[1])
    size = np.float32(rate / (1 - _BETAS[0] ** step))
    scale, epsilon = np.float32(1 / np.sqrt(1 - _BETAS[1] ** step)), np.float32(_EPSILON)
    first, second = moments[0], moments[1]
    for k in range(len(grad)):
        g = grad[k] * factor
        first[k] = keep1 * first[k] + new1 * g
        second[k] = keep2 * second[k] + new2 * g * g
        weights[k] -= size * first[k] / (np.sqrt(second[k]) * scale + epsilon)


@_jit
def _read_out(h_H: Array, w_H: Array, bias: Array) -> Any:
    value = bias[0]
    for k in range(len(h_H)):
        value += h_H[k] * w_H[k]
    return value


@_jit
def rollout(x_LI: Array, steps: int, settled: float, w: Any) -> Array:
    """[steps]: the value after a sequence, and with I = 1 those that follow it with each value as the next input.

    Once no hidden unit moves by `settled` in a step, the value is repeated.
    """
    length, inputs = x_LI.shape
    _, c1, _, h1 = _layer(x_LI.reshape(length, 1, inputs), w[0], w[1], w[2], w[3])
    _, c2, _, h2 = _layer(h1, w[4], w[5], w[6], w[7])
    size = h1.shape[2]
    state = ((c1[-1, 0], h1[-1]), (c2[-1, 0], h2[-1]))
    values = np.empty(steps, np.float32)
    values[0] = _read_out(h2[-1, 0], w[8], w[9])
    tanh_c, before, gates = np.empty(size, np.float32), np.empty((2, size), np.float32), np.empty((1, 4 * size), np.float32)
    bias1, bias2 = w[2] + w[3], w[6] + w[7]
    for t in range(1, steps):
        (c, h), (c_above, h_above) = state
        before[0], before[1] = h[0], h_above[0]
        gates[0] = bias1 + values[t - 1] * w[0][0]
        _multiply_add(gates, h, w[1])
        _activate(gates[0], c, c, tanh_c, h[0])
        gates[0] = bias2
        _multiply_add(gates, h, w[4])
        _multiply_add(gates, h_above, w[5])
        _activate(gates[0], c_above, c_above, tanh_c, h_above[0])
        values[t] = _read_out(h_above[0], w[8], w[9])
        largest = np.float32(0)
        for k in range(size):
            largest = max(largest, abs(h[0, k] - before[0, k]), abs(h_above[0, k] - before[1, k]))
        if largest < settled:
            values[t + 1 :] = values[t]
            break
    return values
