"""Tables of costs, and what holds where."""

import itertools

import pytest

from fineprune.export.engine.ir import costs
from fineprune.export.engine.ir.costs import AVX2, AVX512, NEON, Costs
from fineprune.export.engine.ops import positions_kernel
from fineprune.ops.simd import registers as kinds


@pytest.mark.parametrize("registers", [AVX512, AVX2, NEON])
def test_assumed_costs_are_positive_and_said_in_words(registers: str) -> None:
    assumed = Costs.assumed(registers)
    names = [row[0] for row in costs.ROWS]
    assert len(set(names)) == len(names)
    assert set(assumed.nanoseconds) <= set(names)
    assert all(value > 0 for value in assumed.nanoseconds.values())
    assert all(row[1] for row in costs.ROWS)


@pytest.mark.parametrize("registers", [AVX512, AVX2, NEON])
def test_what_is_the_same_stands_below_what_it_is_like(registers: str) -> None:
    """Tables leave out what the registers have no kernels for."""
    told = [(name.split(".")[:2], text) for name, text, *_ in costs.ROWS if name in Costs.assumed(registers).nanoseconds]
    alike = [(above, stem) for (above, _), (stem, text) in itertools.pairwise(told) if text.startswith("the same")]
    assert alike and all(above == stem for above, stem in alike)


@pytest.mark.parametrize("registers", [kinds.AVX512, kinds.AVX2, kinds.NEON], ids=lambda kind: kind.name)
def test_every_tile_of_the_registers_has_a_cost(registers: kinds.Registers) -> None:
    names = Costs.assumed(registers.name).nanoseconds
    for vectors, rows in positions_kernel.tiles(registers).items():
        assert f"positions.single.{vectors}" in names
        assert rows == 1 or f"positions.pair.{vectors}" in names


def test_expected_time_is_counts_times_costs() -> None:
    assert Costs({"a": 2.0, "b": 3.0, "c": 5.0}).seconds({"a": 7, "c": 1.5}) == pytest.approx(21.5e-9)


def test_a_table_holds_within() -> None:
    before = costs.current()
    table = Costs({"a": 1.0})
    with costs.using(lambda: table):
        assert costs.current() is table
        assert costs.seconds({"a": 4}) == pytest.approx(4e-9)
        with pytest.raises(KeyError, match="b"):
            costs.seconds({"b": 1})
    assert costs.current() is before


def test_digest_is_that_of_the_numbers() -> None:
    assert Costs({"a": 1.0, "b": 2.0}).digest == Costs({"b": 2.0, "a": 1.0}).digest != Costs({"a": 1.0, "b": 2.5}).digest
