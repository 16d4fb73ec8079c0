"""What a parameter server does with a gradient that was computed on old weights. Source: eq. 4.1-4.4; Zheng et al., ICML 2017.

SSGD     g = mean over m of g_m, all of them computed on w
ASGD     g = g_m(w_old), applied to the w that is there now
DC-ASGD  g = g_m + lam * g_m * g_m * (w - w_bak(m)),  w_bak(m) = the weights that worker m pulled
         constant lam, or adaptive: lam0 / sqrt(ms + 1e-7),  ms = 0.95 ms + 0.05 g_m^2
LC-ASGD  g = g_m of a compensated loss, see compensation.py

and then w = w - lr * g, or the step of whatever optimizer is configured.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_DECAY, _EPSILON = 0.95, 1e-7


def mean_gradient(gradients: Sequence[Tensor]) -> Tensor:
    """The mean of gradients of one shape."""
    return torch.stack(list(gradients)).mean(dim=0)


def delay_compensated(gradient: Tensor, weights: Tensor, pulled: Tensor, lam: float | Tensor) -> Tensor:
    """g + lam g*g*(w - w_bak): the gradient carried from the weights it was computed on to those of now, to first order.

    The diagonal of g g^T stands for the Hessian. All of one shape; lam a number or one for each weight.
    """
    return gradient + lam * gradient * gradient * (weights - pulled)


def mean_square(before: Tensor, gradient: Tensor) -> Tensor:
    """0.95 before + 0.05 g^2."""
    return _DECAY * before + (1 - _DECAY) * gradient * gradient


def adaptive_lambda(strength: float, mean_square: Tensor) -> Tensor:
    """lam0 / sqrt(ms + 1e-7), one for each weight."""
    return strength / (mean_square + _EPSILON).sqrt()
