"""Durations on the virtual clock: a pure function of (seed, worker, iteration), so that a resumed run meets the same.

duration = mean * exp(spread * z - spread^2 / 2), z ~ N(0,1)      (mean is kept; constant: spread 0)
stragglers: a computation is straggler_factor times slower with probability straggler_share
heterogeneous: those of worker m times 1 + (slowest - 1) * m / (M - 1)
"""

from typing import NamedTuple

import numpy as np

from .config import TimeConfig

_FORWARD_SHARE = 1 / 3
"""A backward pass computes two gradients where the forward pass computes one output."""


class Durations(NamedTuple):
    """Of one iteration of a worker, in seconds, in the order in which they pass."""

    pull: float
    forward: float
    state: float
    answer: float
    """Server's work and way back; LC-ASGD waits for it."""
    backward: float
    push: float


def durations(config: TimeConfig, seed: int, worker: int, iteration: int, workers: int) -> Durations:
    """How long iteration number `iteration` of `worker` takes."""
    generator = np.random.default_rng([seed, worker, iteration])
    spread = 0.0 if config.distribution == "constant" else config.spread
    pull, compute, state, answer, push = np.exp(spread * generator.standard_normal(5) - spread**2 / 2).tolist()
    compute *= config.compute_s
    if config.distribution == "stragglers" and generator.random() < config.straggler_share:
        compute *= config.straggler_factor
    if config.distribution == "heterogeneous":
        compute *= 1 + (config.slowest - 1) * worker / max(1, workers - 1)
    return Durations(
        pull=pull * config.comm_s,
        forward=compute * _FORWARD_SHARE,
        state=state * config.state_s,
        answer=config.server_s + answer * config.state_s,
        backward=compute * (1 - _FORWARD_SHARE),
        push=push * config.comm_s,
    )
