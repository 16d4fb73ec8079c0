"""Ranges against searches over the values themselves."""

import numpy as np
import pytest

from fineprune.common.errors import RunError
from fineprune.ops.grids import Grid
from fineprune.ops.ranges import BINS, Histogram, histograms, minmax, mse, percentile


def histogram(x: np.ndarray) -> Histogram:
    return Histogram(low=float(x.min()), high=float(x.max()), counts=np.histogram(x, BINS, (x.min(), x.max()))[0])


def test_minmax_is_all() -> None:
    assert minmax(histogram(np.array([-1.5, 0, 4.0]))) == (-1.5, 4.0)


def test_percentile_leaves_one_in_ten_thousand_at_either_end() -> None:
    x = np.random.default_rng(0).normal(size=100_000)
    x[:2] = -40, 40
    low, high = percentile(histogram(x))
    width = 80 / BINS
    assert low == pytest.approx(np.quantile(x, 0.0001), abs=2 * width)
    assert high == pytest.approx(np.quantile(x, 0.9999), abs=2 * width)


@pytest.mark.parametrize("positive", [True, False])
def test_mse_is_the_best_share_of_both_ends(positive: bool) -> None:
    x = np.random.default_rng(1).standard_t(3, size=20_000).astype(np.float32)
    x = np.maximum(x, 0) if positive else x
    low, high = float(x.min()), float(x.max())

    def error(share: float) -> float:
        scale = share * (high - low) / 255
        zero = round(-share * low / scale)
        q = np.clip(np.rint(x / scale) + zero, 0, 255)
        return float(((scale * (q - zero) - x) ** 2).mean())

    found = mse(histogram(x))
    best = min(error(share) for share in np.linspace(0.2, 1, 81))
    assert found[0] == pytest.approx(found[1] / high * low)
    assert error(found[1] / high) <= 1.003 * best < error(1.0)  # bins stand for the values
    assert found[1] < high


def test_mse_keeps_a_range_that_has_no_outliers() -> None:
    x = np.linspace(0, 1, 10_000, dtype=np.float32)
    assert mse(histogram(x))[1] == pytest.approx(1, abs=0.02)


def test_a_range_of_one_value_has_zero_in_it() -> None:
    counts = np.zeros(BINS, np.int64)
    counts[0] = 5
    low, high = mse(Histogram(low=3.0, high=3.0, counts=counts))
    assert low == 0 and Grid.of(low, high).reals(Grid.of(low, high).integers(np.float32([3])))[0] == pytest.approx(3, rel=0.01)


def test_a_histogram_is_that_of_all_batches_together() -> None:
    x = np.random.default_rng(2).normal(size=(300, 4)).astype(np.float32)
    found = histograms(lambda _: ({"x": part, "none": np.zeros(2, np.float32)} for part in np.array_split(x, 7)))
    assert (found["x"].low, found["x"].high) == (x.min(), x.max())
    assert np.array_equal(found["x"].counts, np.histogram(x, BINS, (float(x.min()), float(x.max())))[0])
    assert (found["none"].low, found["none"].high, found["none"].counts.sum()) == (0, 0, 14)


@pytest.mark.parametrize("place", [0, 1])
def test_values_that_are_not_finite_are_named(place: int) -> None:
    batches = [np.ones(3, np.float32), np.ones(3, np.float32)]
    batches[place][1] = np.nan
    with pytest.raises(RunError, match="x is not finite"):
        histograms(lambda _: ({"x": part} for part in batches))
