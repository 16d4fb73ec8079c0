"""Filters of smallest weights, against the loop of the paper."""

import numpy as np
import pytest

from support.filters import without_smallest


def sums(weight: np.ndarray) -> list[float]:
    """Of absolute kernel weights, filter by filter."""
    return [sum(abs(float(w)) for w in filter.ravel()) for filter in weight]


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.75])
def test_whole_filters_go_as_in_the_paper_without_a_pass_over_the_data(ratio: float) -> None:
    assert without_smallest("l1-filters", ratio, sums).masks["fwp"]
