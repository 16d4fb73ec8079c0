"""The convolution worked by hand from the thesis' figures: one sample, one channel, one 3x3 filter, padding 1."""

import torch
from torch import Tensor

X = torch.tensor([[0, 2, 2, 2], [1, 2, 0, 2], [0, 2, 2, 1], [0, 1, 1, 2]])[None, None].float()
K = torch.tensor([[0, 1, -1], [-1, 0, -1], [1, 0, 0]])[None, None].float()
M = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()[None]

DENSE = [[-2, -1, -2, -2], [-4, -1, -2, 4], [-3, 0, -4, 1], [-3, -1, -2, 0]]
MASKED = [[-2, 0, 0, -2], [-4, -1, -2, 4], [-3, 0, -4, 1], [0, 0, 0, 0]]
K_PRUNED = [[0, 1, 0], [-1, 0, -1], [0, 0, 0]]
MASKED_PRUNED = [[-2, 0, 0, -2], [-2, 1, -2, 2], [-1, 0, -3, 0], [0, 0, 0, 0]]
SQUARED_NORMS = [[9, 13, 20, 12], [13, 21, 29, 17], [10, 15, 23, 14], [5, 10, 15, 10]]
S = [[7, 11, 10], [9, 12, 11], [6, 12, 11]]
SIGNED_WIS = [[0, 11, -10], [-9, 0, -11], [6, 0, 0]]

SCORES, SCORES_KEPT = [[29, 70, 39], [76, 45, 64], [30, 18, 41]], [(0, 1), (1, 0), (1, 2)]
FREQUENCY = [[80, 85, 92, 36], [90, 65, 74, 89], [15, 20, 87, 75], [32, 21, 73, 64]]
FREQUENCY_MASK = [[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0]]


def positions(mask: Tensor) -> list[tuple[int, ...]]:
    """Indices of the kept elements, in order."""
    return [tuple(place) for place in mask.nonzero().tolist()]
