"""LC-ASGD's compensated loss (eq. 4.5-4.7), and what differentiates of it.

The source back-propagates l_m + lam * l_delay, where l_delay is the sum of the k losses that other workers are predicted to bring
before this gradient is applied. l_delay comes from the server as a number: it is a constant, and d(l_m + lam l_delay) = d l_m is plain
ASGD, to the bit. What the sentence asks for has to be read into it, so there are four modes (s: factor of the gradient of l_m),
and `damped`, which does the opposite:

literal      s = 1                            back-propagates l_m + lam l_delay: equals ASGD
ratio        s = 1 + lam l_delay / l_m        the scalar s l_m that is back-propagated equals l_m + lam l_delay
chain        s = 1 + lam d l_delay / d l_m    l_delay as the function of l_m that the predictor computes
normalised   s = ratio / (1 + lam k)          leaves the mean step as it is where predicted losses equal the present one
damped       s = 1 / ratio                    late gradients count less, not more: see staleness-aware ASGD (Zhang et al., IJCAI 2016)

With l_delay near k l_m, `ratio` is nearly a learning rate of lr (1 + lam k): see the fairness row in docs/results.md.
"""

from typing import NamedTuple

from .config import Mode


class Forecast(NamedTuple):
    """The server's answer to a state message."""

    delay: float = 0.0
    """l_delay, in nats: sum of the k predicted losses."""
    steps: int = 0
    """k."""
    slope: float = 0.0
    """d l_delay / d l_m; only for `chain`."""


class Compensation(NamedTuple):
    """Back-propagate scale * loss + offset."""

    scale: float = 1.0
    offset: float = 0.0


LEAST_LOSS = 1e-12
"""Nats: what a loss of zero counts as where something is divided by it."""


def compensation(mode: Mode, lam: float, loss: float, forecast: Forecast, max_scale: float) -> Compensation:
    """The compensated loss of a worker whose loss is `loss` (nats), with the factor kept in [0, max_scale]."""
    if mode == "literal":
        return Compensation(offset=lam * forecast.delay)
    scale = 1 + lam * forecast.slope if mode == "chain" else 1 + lam * forecast.delay / max(loss, LEAST_LOSS)
    if mode == "normalised":
        scale /= 1 + lam * forecast.steps
    elif mode == "damped":
        scale = 1 / scale
    return Compensation(scale=min(max(scale, 0.0), max_scale))
