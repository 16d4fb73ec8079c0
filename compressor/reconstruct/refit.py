"""The best weights that a mask leaves: a ridge regression of the dense layer's outputs on the masked layer's inputs, solved exactly.

    w_S = (H_SS + a I)^-1 (G_S + a w0_S),    H = X~ X~^T,    G = X~ Y^T,    a = RIDGE * mean(diag H)

X~ [d,n]: inputs of the compressed network under the layer's block masks, a column a sample and position; Y [F,n]: outputs of the dense one;
w0: the weights before, which the ridge draws to; S: the weights of a filter that stay. Filters with the same S share the factor.
With V = (H + a I)^-1, w* = V (G + a w0) and R the weights that go, the same w is w* - V_:R (V_RR)^-1 w*_R, which costs less where R is
the smaller. Sources: optimal brain surgeon (Hassibi and Stork, 1993), OBC (arXiv 2208.11580).
"""

import numpy as np
import torch
from torch import Tensor

RIDGE = 1e-3
"""Of the mean square of the inputs."""
_NOTHING = 1e-30
"""A ridge of inputs whose squares float32 no longer tells apart."""


def ridge_of(gram: Tensor, *, bias: bool) -> Tensor:
    """a of every row of gram[d,d]; with `bias`, the last row is that of an input of ones, whose weight is free."""
    squares = gram.diagonal()
    ridge = (RIDGE * (squares[:-1] if bias else squares).mean()).expand(len(gram)).clone()
    ridge[ridge < _NOTHING] = 1.0  # inputs that are all but zero say nothing: the weights stay
    if bias:
        ridge[-1] = 0.0
    return ridge


def refit(gram: Tensor, products: Tensor, before: Tensor, kept: Tensor, ridge: Tensor) -> Tensor:
    """H[d,d], G[d,F], w0[F,d], kept bool[F,d] and a[d], in float64 on the CPU -> weights [F,d], zero where nothing is kept.

    torch.linalg.LinAlgError where H + a is not positive definite.
    """
    system = gram + torch.diag(ridge)
    wanted = products + ridge[:, None] * before.T
    sets, members = np.unique(kept.numpy(), axis=0, return_inverse=True)
    found = torch.zeros_like(wanted)
    sizes = sets.sum(1).astype(float)
    smaller = np.minimum(sizes, len(gram) - sizes)
    inverse = _inverse(system) if 3.0 * len(gram) ** 3 + (smaller**3).sum() < (sizes**3).sum() else None
    for number, one in enumerate(sets):
        filters = torch.from_numpy(np.flatnonzero(members.reshape(-1) == number))
        stay, go = (torch.from_numpy(np.flatnonzero(part)) for part in (one, ~one))
        if inverse is not None and len(go) < len(stay):
            free = inverse @ wanted[:, filters]
            free -= inverse[:, go] @ _solve(inverse[go][:, go], free[go])
            found[stay[:, None], filters] = free[stay]
        elif len(stay):
            found[stay[:, None], filters] = _solve(system[stay][:, stay], wanted[stay][:, filters])
    return found.T.contiguous()


def _solve(system: Tensor, wanted: Tensor) -> Tensor:
    return torch.cholesky_solve(wanted, torch.linalg.cholesky(system)) if len(system) else wanted


def _inverse(system: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(system))
