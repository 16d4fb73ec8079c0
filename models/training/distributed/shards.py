"""Each worker's share of the training samples.

iid        a random partition, sizes equal to within one
dirichlet  for each class, shares over the workers drawn from Dirichlet(alpha): alpha -> 0 gives a class to one worker, alpha -> inf is iid
           (Hsu et al. 2019); drawn again until every worker has `least` samples
"""

import numpy as np
import torch
from torch import Tensor

from fineprune.common.errors import RunError

_DRAWS = 200


def iid(count: int, workers: int, seed: int) -> list[Tensor]:
    """int64 indices of each worker's samples, ascending."""
    order = np.random.default_rng(seed).permutation(count)
    return [torch.from_numpy(np.sort(part)) for part in np.array_split(order, workers)]


def dirichlet(labels: Tensor, workers: int, alpha: float, seed: int, *, least: int = 2) -> list[Tensor]:
    """int64 indices of each worker's samples, ascending; labels int64 [N]. RunError where no draw gives each worker `least` samples."""
    generator = np.random.default_rng(seed)
    classes = labels.numpy()
    for _ in range(_DRAWS):
        parts: list[list[np.ndarray]] = [[] for _ in range(workers)]
        for label in np.unique(classes):
            members = generator.permutation(np.flatnonzero(classes == label))
            shares = generator.dirichlet(np.full(workers, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
            for part, chosen in zip(parts, np.split(members, cuts), strict=True):
                part.append(chosen)
        shards = [torch.from_numpy(np.sort(np.concatenate(part))) for part in parts]
        if min(map(len, shards)) >= least:
            return shards
    raise RunError(
        f"no Dirichlet({alpha}) division of {len(labels)} samples gave each of {workers} workers at least {least}; "
        "use a larger alpha, fewer workers or a smaller batch size"
    )
