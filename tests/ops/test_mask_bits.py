"""Masks as bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fineprune.ops import mask_bits


@settings(deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(max_dims=4, max_side=7)), st.sampled_from(["little", mask_bits.BUNDLE]))
def test_bits_round_trip(mask: NDArray, order: mask_bits.Order) -> None:
    bits = mask_bits.pack(mask, order)
    assert bits.dtype == np.uint8 and bits.shape == (mask_bits.size(mask.size),) == ((mask.size + 7) // 8,)
    unpacked = mask_bits.unpack(bits, mask.shape, order)
    assert unpacked.dtype == bool and np.array_equal(unpacked, mask)


@pytest.mark.parametrize(("order", "expected"), [("little", [0b10, 0b10]), (mask_bits.BUNDLE, [0b01000000, 0b01000000])])
def test_where_an_element_lies(order: mask_bits.Order, expected: list[int]) -> None:
    mask = np.zeros((2, 5), bool)
    mask[0, 1] = mask[1, 4] = True  # elements 1 and 9
    assert mask_bits.pack(mask, order).tolist() == expected
