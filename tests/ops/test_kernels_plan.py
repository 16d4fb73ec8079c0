"""The index lists of the kernels: everything kept is listed once, in the order promised, and nothing else."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fineprune.ops.kernels import plan

MASK = np.array([[[1, 0, 1], [0, 0, 0]], [[0, 0, 1], [1, 1, 0]]], bool)


def test_blocks_worked_by_hand() -> None:
    blocks = plan.blocks(MASK)
    assert blocks.starts.tolist() == [0, 1, 1, 3, 4, 5, 5]
    assert blocks.active.tolist() == [0, 0, 1, 1, 1]
    assert blocks.row_starts.tolist() == [0, 2, 3, 3, 5]
    assert blocks.columns.tolist() == [0, 2, 2, 0, 1]


def kept_weights(density: float) -> NDArray:
    return np.random.default_rng(1).random((7, 5, 6)) < density


def listed(index: NDArray, kept: NDArray) -> list[int]:
    """Positions in the flat weight that are listed, without those listed because they share a tile with a kept one."""
    return sorted(i for i in index.tolist() if i >= 0 and kept.reshape(-1)[i])


def entries(segments: NDArray) -> list[tuple[int, int]]:
    """(list, entry) of every entry."""
    return [(s, e) for s in range(len(segments) - 1) for e in range(segments[s], segments[s + 1])]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_forward_lists_hold_every_kept_weight_once(rows: int, density: float) -> None:
    kept = kept_weights(density)
    lists = plan.forward_entries(kept, rows, np.arange(6) * 100)
    assert listed(lists.positions, kept) == np.flatnonzero(kept).tolist()
    assert len(lists.positions) == rows * len(lists.offsets) == rows * lists.segments[-1]
    groups = 8 // rows
    assert len(lists.segments) == 6 * groups + 1
    assert lists.segments[5 * groups] == lists.segments[-1], "the channel after the last is empty"
    for s, e in entries(lists.segments[: 5 * groups + 1]):
        for row, position in enumerate(lists.positions[e * rows : (e + 1) * rows]):
            if position >= 0:
                f, c, tap = np.unravel_index(position, kept.shape)
                assert (c, f, tap * 100) == (s // groups, s % groups * rows + row, lists.offsets[e])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_input_grad_lists_hold_every_kept_weight_once(rows: int, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "GRAD_BLOCK", 4)
    kept = kept_weights(density)
    lists = plan.input_grad_entries(kept, rows, 10)
    assert listed(lists.positions, kept) == np.flatnonzero(kept).tolist()
    per_channel = 6 // rows
    for s, e in entries(lists.segments):
        for row, position in enumerate(lists.positions[e * rows : (e + 1) * rows]):
            f, c, tap = np.unravel_index(position, kept.shape)
            assert s == (f // 4 * 5 + c) * per_channel + tap // rows
            assert (tap % rows, f % 4 * 10) == (row, lists.offsets[e])


@pytest.mark.parametrize("density", [0.0, 0.2, 0.4, 0.7, 1.0])
def test_weight_grad_tiles_hold_every_kept_weight_once(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WEIGHT_BLOCK", 4)
    kept = kept_weights(density)
    fours, twos = plan.weight_grad_tiles(kept, np.arange(6) * 100)
    found = [i for tiles in (fours, twos) for i in tiles.positions.tolist() if i >= 0]
    assert sorted(found) == np.flatnonzero(kept).tolist()
    for size, tiles in ((4, fours), (2, twos)):
        for s, e in entries(tiles.segments):
            for position, offset in zip(tiles.positions[e * size : (e + 1) * size], tiles.offsets[e * size : (e + 1) * size], strict=True):
                if position >= 0:
                    f, c, tap = np.unravel_index(position, kept.shape)
                    assert (s, f, tap * 100) == (f // 4 * 5 + c, tiles.filters[e], offset)
    assert ((fours.positions.reshape(-1, 4) >= 0).sum(1) >= 3).all()


def test_shares() -> None:
    kept = np.zeros((8, 2, 3, 3), bool)
    assert plan.share_of_filter_tiles(kept) == plan.share_of_tap_rows(kept) == 0
    kept[3, 0, 1, 2] = True
    assert plan.share_of_filter_tiles(kept) == 1 / 36
    assert plan.share_of_tap_rows(kept) == 1 / 48
