"""The reference itself, against vectors worked by hand from the thesis' figures and against torch's dense convolution."""

import numpy as np
import torch

from support.reference import blocks, masked_conv2d
from support.tolerances import FLOAT64

X = np.array([[0, 2, 2, 2], [1, 2, 0, 2], [0, 2, 2, 1], [0, 1, 1, 2]])[None, None]
K = np.array([[0, 1, -1], [-1, 0, -1], [1, 0, 0]])[None, None]
K_FWP = np.array([[0, 1, 0], [-1, 0, -1], [0, 0, 0]])[None, None]
M = np.array([[1, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)[None]


def test_dense_by_hand() -> None:
    assert masked_conv2d(X, K, None, None, padding=1)[0, 0].tolist() == [[-2, -1, -2, -2], [-4, -1, -2, 4], [-3, 0, -4, 1], [-3, -1, -2, 0]]


def test_masked_by_hand() -> None:
    expected = [[-2, 0, 0, -2], [-4, -1, -2, 4], [-3, 0, -4, 1], [0, 0, 0, 0]]
    assert masked_conv2d(X, K, None, M, padding=1)[0, 0].tolist() == expected
    assert masked_conv2d(X, K, None, M[None], padding=1)[0, 0].tolist() == expected


def test_masked_blocks_and_weights_by_hand() -> None:
    expected = [[-2, 0, 0, -2], [-2, 1, -2, 2], [-1, 0, -3, 0], [0, 0, 0, 0]]
    assert masked_conv2d(X, K_FWP, None, M, padding=1)[0, 0].tolist() == expected


def test_block_norms_by_hand() -> None:
    squared = (blocks(X, 3, padding=1) ** 2).sum((-1, -2))[0, 0]
    assert squared.tolist() == [[9, 13, 20, 12], [13, 21, 29, 17], [10, 15, 23, 14], [5, 10, 15, 10]]


def test_all_ones_is_torch_conv2d() -> None:
    generator = np.random.default_rng(0)
    x, w, b = generator.normal(size=(2, 6, 11, 7)), generator.normal(size=(4, 3, 3, 2)), generator.normal(size=4)
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1), "groups": 2}
    expected = torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(w), torch.tensor(b), **geometry)
    rtol, atol = FLOAT64
    np.testing.assert_allclose(masked_conv2d(x, w, b, None, **geometry), expected, rtol=rtol, atol=atol)


def test_a_mask_per_sample_is_that_sample_under_its_own_mask() -> None:
    generator = np.random.default_rng(1)
    x, w = generator.normal(size=(3, 2, 5, 7)), generator.normal(size=(5, 2, 3, 3))
    masks = generator.random((3, 2, 3, 5)) < 0.5
    together = masked_conv2d(x, w, None, masks)
    for n in range(3):
        assert (together[n] == masked_conv2d(x[n : n + 1], w, None, masks[n])[0]).all()
