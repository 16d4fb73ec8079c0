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
    classes, sizes = np.unique(labels.numpy(), return_counts=True)
    share = sizes * (wanted / max(count, 1))
    quota = np.floor(share).astype(int)
    # The samples that rounding down left over go to the classes with the largest remainders (Hamilton's rule), ties at random.
    leftover = wanted - quota.sum()
    quota[np.lexsort((generator.random(len(classes)), quota - share))[:leftover]] += 1
    taken = np.zeros(count, bool)
    for label, number in zip(classes, quota, strict=True):
        taken[generator.permutation(np.flatnonzero(labels.numpy() == label))[:number]] = True
    return torch.from_numpy(np.flatnonzero(~taken)), torch.from_numpy(np.flatnonzero(taken))
