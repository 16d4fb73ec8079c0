"""Top-K and the global threshold, by hand and against exhaustive statements of what they promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.compressor.ranking import global_threshold, keep_count, rows_reserved, top_k
from support import vectors


def test_vectors_worked_by_hand() -> None:
    scores = torch.tensor(vectors.SCORES)
    assert vectors.positions(top_k(scores.view(1, 9), 3).view(3, 3)) == vectors.SCORES_KEPT
    frequency = torch.tensor(vectors.FREQUENCY)
    assert top_k(frequency.view(1, 16), 10).view(4, 4).int().tolist() == vectors.FREQUENCY_MASK


@pytest.mark.parametrize(
    ("size", "ratio", "kept"), [(16, 0.375, 10), (9, 0.556, 4), (9, 0.5, 5), (9, 0.95, 1), (1, 0.5, 1), (1, 0.6, 1), (7, 0.0, 7)]
)
def test_the_ratio_is_the_pruned_fraction(size: int, ratio: float, kept: int) -> None:
    assert keep_count(size, ratio) == kept


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.data())
def test_top_k_is_the_head_of_a_sorted_list(rows: int, size: int, data: st.DataObject) -> None:
    """Scores and tie-breaks of few values, so that all kinds of ties occur."""
    few = st.lists(st.lists(st.integers(0, 2), min_size=size, max_size=size), min_size=rows, max_size=rows)
    scores, ties = torch.tensor(data.draw(few)), torch.tensor(data.draw(few))
    keep = data.draw(st.integers(0, size))
    for tie_break in (None, ties):
        got = top_k(scores, keep, tie_break=tie_break)
        for row in range(rows):
            order = sorted(range(size), key=lambda i: (-int(scores[row, i]), 0 if tie_break is None else -int(ties[row, i]), i))
            assert got[row].nonzero().flatten().tolist() == sorted(order[:keep])


def test_threshold_ranks_score_per_cost_over_all_layers() -> None:
    scores = {"a": torch.tensor([[9.0, 1.0], [8.0, 3.0]]), "b": torch.tensor([40.0, 100.0, 10.0])}
    costs = {"a": torch.full((2, 2), 1), "b": torch.full((3,), 10)}  # per cost: a 9 1 8 3, b 4 10 1; 34 in total
    kept = global_threshold(scores, costs, 0.3)  # 23.8 to spend: b1 (10), a0 (11), a2 (12), b0 (22), a3 (23)
    assert kept["a"].tolist() == [[True, False], [True, True]]
    assert kept["b"].tolist() == [True, True, False]


def test_elements_that_cost_nothing_are_dropped() -> None:
    kept = global_threshold({"a": torch.tensor([5.0, 7.0, 1.0])}, {"a": torch.tensor([2, 0, 2])}, 0.0, floor=1.0)
    assert kept["a"].tolist() == [True, False, True]


def test_the_floor_holds_no_budget_for_what_has_gone_before() -> None:
    """Of `a` a mask left one element, less than the floor; the other three budget for nothing."""
    gone = -torch.inf
    scores = {"a": torch.tensor([gone, 2.0, gone, gone]), "b": torch.tensor([4.0, 3.0, 5.0, 6.0])}
    kept = global_threshold(scores, {name: torch.ones(4) for name in scores}, 0.5, floor=0.75)
    assert kept["a"].tolist() == [False, True, False, False]
    assert kept["b"].tolist() == [True, False, True, True]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.floats(0, 0.95), st.sampled_from([0.0, 0.1, 0.4]), st.integers(0, 99))
def test_the_budget_is_met_within_one_element_and_no_layer_goes_below_the_floor(
    sizes: list[int], ratio: float, floor: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.rand(size, generator=generator) * 10.0**i for i, size in enumerate(sizes)}
    costs = {name: torch.randint(1, 20, score.shape, generator=generator) for name, score in scores.items()}
    kept = global_threshold(scores, costs, ratio, floor)
    total = sum(int(cost.sum()) for cost in costs.values())
    spent = sum(int(costs[name][mask].sum()) for name, mask in kept.items())
    largest = max(int(cost.max()) for cost in costs.values())
    reserved = 0
    for name, mask in kept.items():
        count = max(1, round(floor * mask.numel())) if floor else 0
        best = (scores[name] / costs[name]).argsort(descending=True)[:count]
        assert mask[best].all(), name
        reserved += int(costs[name][best].sum())
    budget = (1 - ratio) * total
    assert spent <= max(budget * (1 + 1e-9), reserved)
    assert spent > budget - largest - 1e-6


def test_no_ratio_keeps_everything_that_costs() -> None:
    scores = {"a": torch.rand(1000, generator=torch.Generator().manual_seed(0))}
    assert global_threshold(scores, {"a": torch.full((1000,), 7)}, 0.0)["a"].all()


def test_rows_keep_their_best_by_cost_before_all_others() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.1, 0.2, 0.4, 0.3]], dtype=torch.float64)
    costs = torch.tensor([[4, 1, 1, 1], [1, 0, 8, 1]])
    reserved = rows_reserved(scores, costs, 0.5)
    assert (reserved == torch.inf).tolist() == [[False, True, True, False], [True, False, False, True]]
    assert torch.equal(reserved[reserved < torch.inf], scores[reserved < torch.inf])
    assert (rows_reserved(scores, costs, 0.0) == torch.inf).sum(1).tolist() == [1, 1], "at least one"
