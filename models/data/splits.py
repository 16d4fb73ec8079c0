"""Seeded, stratified division of a labelled set."""

import numpy as np
import torch
from torch import Tensor

TEST_FRACTION = 0.2
TEST_SEED = 0
"""The test part of a source without one never depends on the user's seed: no test image may become a training image."""


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (rest, part): `part` holds round(fraction * N) samples, every class in proportion to within one sample.

    labels: int64 [N]; fraction in [0,1). At least one sample is taken where fraction > 0 and N > 1. Both results are in
    ascending order.
    """
    count = len(labels)
    wanted = min(max(round(fraction * count), int(fraction > 0)), max(count - 1, 0))
    generator = np.random.default_rng(seed)
    key = np.empty(count)
    for label in np.unique(labels.numpy()):
        members = np.flatnonzero(labels.numpy() == label)
        # The r-th of n samples of a class stands at (r + a half) / n; the smallest keys are then the same share of every class.
        key[generator.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((generator.random(count), key))
    part, rest = np.sort(order[:wanted]), np.sort(order[wanted:])
    return torch.from_numpy(rest), torch.from_numpy(part)
