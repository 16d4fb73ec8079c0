"""The dynamic programme against all choices there are."""

import itertools

import numpy as np
import pytest

from fineprune.compressor.search.programme import BUCKETS, solve


@pytest.mark.parametrize("seed", range(8))
def test_it_finds_what_trying_everything_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    times = [np.sort(random.random(levels) + 0.1)[::-1] for levels in (4, 3, 5, 2, 4)]
    errors = [np.sort(random.random(len(of_layer))) for of_layer in times]
    budget = float(sum(of_layer.mean() for of_layer in times))
    found = solve(times, errors, budget)
    assert found is not None

    def total(of: list[np.ndarray], levels: tuple[int, ...] | list[int]) -> float:
        return float(sum(one[level] for one, level in zip(of, levels, strict=True)))

    everything = itertools.product(*(range(len(of_layer)) for of_layer in times))
    fits = [levels for levels in everything if total(times, levels) <= budget * (1 - len(times) / BUCKETS)]
    assert total(times, found) <= budget
    assert total(errors, found) <= min(total(errors, levels) for levels in fits) + 1e-12


def test_a_budget_below_the_fastest_levels_has_no_answer_and_one_at_them_has() -> None:
    times, errors = [np.array([3.0, 1.0]), np.array([2.0, 0.7])], [np.array([0.0, 1.0]), np.array([0.0, 5.0])]
    assert solve(times, errors, 1.69) is None
    assert solve(times, errors, 1.7) == [1, 1]
    assert solve(times, errors, 5.0) == [0, 0]
    assert solve(times, errors, 3.1) == [1, 0]
