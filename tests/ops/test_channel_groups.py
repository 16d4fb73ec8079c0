"""Orders of channels in which a mask keeps and drops groups of them whole."""

import numpy as np
import pytest

from fineprune.ops.channel_groups import aligned_order, alike, grouped_order


def in_groups(mask: np.ndarray, order: np.ndarray, size: int) -> bool:
    return all((mask[:, order[i : i + size]] == mask[:, order[i : i + 1]]).all() for i in range(0, len(order), size))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("channels", [16, 3, 7, 10, 1])
@pytest.mark.parametrize("density", [0.5, 0.05])
def test_a_shuffled_order_is_found_again(channels: int, size: int, density: float) -> None:
    generator = np.random.default_rng(channels)
    kept = generator.random((5, -(-channels // size), 3, 2)) < density
    mask = kept.repeat(size, 1)[:, :channels][:, generator.permutation(channels)]
    order = aligned_order(mask, size)
    assert order is not None and sorted(order) == list(range(channels)) and in_groups(mask, order, size)


def test_the_order_of_the_file_is_kept_where_it_is_one() -> None:
    mask = (np.random.default_rng(0).random((6, 3, 1, 1)) < 0.5).repeat(4, 1)[:, :10]
    assert aligned_order(mask, 4).tolist() == list(range(10))  # type: ignore[union-attr]
    assert aligned_order(np.ones((2, 7, 3, 3), bool), 4).tolist() == list(range(7))  # type: ignore[union-attr]


@pytest.mark.parametrize("channels", [8, 6, 7])
def test_one_weight_more_and_there_is_none(channels: int) -> None:
    mask = (np.random.default_rng(1).random((6, 2, 3, 3)) < 0.5).repeat(4, 1)[:, :channels]
    assert aligned_order(mask, 4) is not None
    mask[2, 1, 0, 2] ^= True
    assert aligned_order(mask, 4) is None and len(set(alike(mask)[:4])) == 2


def test_two_rests_make_no_group() -> None:
    mask = np.array([[1, 0, 1, 1, 1, 1]], bool)[..., None, None].repeat(2, 0)
    assert aligned_order(mask, 4) is None, "one channel is alone, and five are left"
    assert aligned_order(mask[:, [0, 2, 3, 4, 1]], 4).tolist() == [0, 1, 2, 3, 4]  # type: ignore[union-attr]


def test_greedy_groups_are_those_that_are_masked_alike() -> None:
    random = np.random.default_rng(0)
    clusters = random.permutation(24) // 4
    mask = (random.random((10, 6, 3, 3)) < 0.3)[:, clusters]
    order = grouped_order(mask, 4)
    assert sorted(order.tolist()) == list(range(24))
    assert all(len(set(clusters[order[k : k + 4]])) == 1 for k in range(0, 24, 4))


def test_greedy_groups_keep_less_together_than_those_of_the_file() -> None:
    mask = np.random.default_rng(1).random((8, 13, 3, 3)) < 0.3
    order = grouped_order(mask, 4)
    assert sorted(order.tolist()) == list(range(13))

    def kept(channels: np.ndarray) -> int:
        return sum(int(mask[:, channels[k : k + 4]].any(1).sum()) for k in range(0, 13, 4))

    assert kept(order) < kept(np.arange(13))
