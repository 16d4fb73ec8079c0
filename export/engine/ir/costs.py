"""What the parts of operations cost on a machine: nanoseconds by name.

    expected time = sum over the names of  how often * what one costs

A kernel says how often (`Counts`); how long one takes is a table of the machine (`Costs`). This module has the tables that are assumed of
machines whose costs nobody has measured, one for each kind of registers; run/machine.py measures. A table holds within `using`.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType
from typing import Self

Counts = Mapping[str, float]
"""Name -> how often."""

AVX512, AVX2, NEON = "avx512", "avx2", "neon"
"""Names of kinds of registers (ops/simd/registers.py)."""

ROWS: tuple[tuple[str, str, float | None, float | None, float | None], ...] = (
    # name, what one is; nanoseconds with AVX-512 (Zen 5), AVX2 (Zen 3), NEON (guessed); None: no kernels
    ("filters.operation", "an operation", 9.36, 1390.0, 1390.0),
    ("filters.result", "a vector of results", 0.52, 2.01, 4.02),
    ("filters.entry.1", "an entry at a slot of a whole tile, one vector", 0.169, 0.412, 0.824),
    ("filters.entry.2", "the same, two vectors", 0.26, 0.941, 1.88),
    ("filters.entry.4", "the same, four vectors", 0.533, None, None),
    ("filters.kept.1", "an entry at a slot, where some slots of the tile drop it, one vector", 0.286, 1.67, 3.35),
    ("filters.kept.2", "the same, two vectors", 0.312, 2.56, 5.12),
    ("filters.kept.4", "the same, four vectors", 0.559, None, None),
    ("filters.alone.1", "an entry at a slot that is no part of a tile, one vector", 1.04, 0.583, 1.17),
    ("filters.alone.2", "the same, two vectors", 1.04, 2.11, 4.21),
    ("filters.alone.4", "the same, four vectors", 1.04, None, None),
    ("filters.listed.1", "an entry at a slot of a list, whose last tiles may be smaller, one vector", 0.1859, 0.518, 0.518),
    ("filters.listed.2", "the same, two vectors", 0.286, 1.47, 1.47),
    ("filters.listed.4", "the same, four vectors", 0.5863, None, None),
    ("filters.place", "the place of a slot in a tile in which some slots drop a channel", 0.078, 0.0965, 0.0965),
    ("filters.item", "a work item", 20.0, 15.9, 15.9),
    ("filters.line", "a vector of x that comes from beyond the first-level cache", 0.1, 1.09, 2.18),
    ("filters.weight", "a weight that comes from beyond the first caches", 0.01, 0.318, 0.318),
    ("filters.weight.far", "a weight that comes from memory, with what it drives out of the caches", 0.065, 0.065, 0.065),
    ("filters.pass", "a pass of a channel", 9.36, 5.12, 5.12),
    ("filters.list", "the pass of all slots, or its part for a tile", 5.2, 3.76, 3.76),
    ("filters.sums", "loading and storing the sums of a slot", 0.65, 0.377, 0.753),
    ("filters.sum", "each vector of them", 0.156, 2.63, 5.25),
    ("filters.scattered", "a vector of x from beyond the second-level cache, where masks scatter the slots of a tile", 9.88, 9.88, 9.88),
    ("depthwise.entry", "an entry at a slot", 0.221, 0.595, 1.19),
    ("depthwise.result", "a vector of results, beyond that of other convolutions", 0.26, 0.171, 0.341),
    ("depthwise.mask", "a vector of results under a mask", 0.26, 1.31, 2.63),
    ("depthwise.line", "a vector of x", 0.39, 3.0, 5.99),
    ("positions.operation", "an operation", 100.0, 1630.0, 1630.0),
    ("positions.pair.8", "two multiply-adds of a vector that two filters share, in tiles of eight vectors", 0.240, None, None),
    ("positions.pair.7", "two multiply-adds of a vector that two filters share, in tiles of seven vectors", 0.240, None, None),
    ("positions.pair.4", "two multiply-adds of a vector that two filters share, in tiles of four vectors", 0.261, None, None),
    ("positions.pair.1", "two multiply-adds of a vector that two filters share, in tiles of one vector", 0.350, 0.852, 1.7),
    ("positions.single.8", "two multiply-adds of vectors of their own, in tiles of eight vectors", 0.307, None, None),
    ("positions.single.7", "two multiply-adds of vectors of their own, in tiles of seven vectors", 0.307, 0.935, 1.87),
    ("positions.single.4", "two multiply-adds of vectors of their own, in tiles of four vectors", 0.308, 0.915, 1.83),
    ("positions.single.1", "two multiply-adds of vectors of their own, in tiles of one vector", 0.420, 1.29, 2.59),
    ("positions.pack", "a packed vector", 0.50, 0.672, 1.34),
    ("positions.pack.masked", "a packed vector of a masked channel", 0.35, 1.27, 2.54),
    ("positions.pack.part", "each further segment of a packed vector", 0.46, 0.155, 0.155),
    ("positions.pack.step", "each further step between the columns of a packed vector", 0.23, 1.39, 1.39),
    ("positions.job", "a run of packed vectors", 2.3, 1.77, 1.77),
    ("positions.sum", "a vector of sums stored and loaded again", 0.64, 0.6, 1.2),
    ("positions.output", "an output vector", 0.77, 6.2, 12.4),
    ("positions.output.part", "each further segment of an output vector", 0.27, 2.87, 2.87),
    ("positions.weight", "a kept weight and its offset, from beyond the first caches", 0.01, 0.215, 0.215),
    ("positions.weight.byte", "a byte of weights and offsets beyond those that lie near from the run before", 0.025, 0.02, 0.02),
    ("positions.activation.byte", "a byte of input or output beyond what lies near within a network", 0.03, 0.02, 0.02),
    ("quad_positions.operation", "an operation", 100.0, 300.0, 300.0),
    ("quad_positions.product", "a product of a weight quad with a vector of positions", 0.13, 0.6, 1.2),
    ("quad_positions.entry", "a kept quad and its offset, in a tile", 0.4, 0.8, 0.8),
    ("quad_positions.result", "a vector of four filters' results", 4.0, 12.0, 24.0),
    ("quad_positions.item", "a work item", 10.0, 20.0, 20.0),
    ("quad_shared.operation", "an operation", 100.0, None, None),
    ("quad_shared.product", "a product of a weight quad with a vector of positions", 0.08, None, None),
    ("quad_shared.load", "a vector of positions, for the filters that share it", 0.08, None, None),
    ("quad_shared.entry", "a kept quad, its offset and weights, in a tile", 0.4, None, None),
    ("quad_shared.result", "a vector of four filters' results", 4.0, None, None),
    ("quad_shared.item", "a work item, with a list for each filter and for each two", 30.0, None, None),
    ("quad_filters.operation", "an operation", 100.0, 300.0, 300.0),
    ("quad_filters.product", "a product of a quad of a position with weights of a vector of filters", 0.13, 0.6, 1.2),
    ("quad_filters.entry", "weights of a vector of filters, in a tile", 0.4, 0.8, 0.8),
    ("quad_filters.result", "a vector of filters' results at a position", 5.0, 8.0, 12.0),
    ("quad_filters.item", "a work item", 10.0, 20.0, 20.0),
    ("quad_expanded.operation", "an operation", 100.0, None, None),
    ("quad_expanded.product", "a product of a quad of a position with weights of a vector of filters", 0.13, None, None),
    ("quad_expanded.entry", "weights of a vector of filters, spread over its lanes, in a tile", 0.8, None, None),
    ("quad_expanded.result", "a vector of filters' results at a position", 5.0, None, None),
    ("quad_expanded.item", "a work item", 10.0, None, None),
    ("quad_weights.line", "a cache line of weights and their places, from beyond the first-level cache", 0.6, 1.0, 2.0),
    ("quad_depthwise.operation", "an operation", 100.0, 300.0, 300.0),
    ("quad_depthwise.taps.1", "four taps of four channels at a vector of positions", 2.0, 8.0, 16.0),
    ("quad_depthwise.taps.2", "the same, of every second column", 3.0, 12.0, 24.0),
    ("quad_depthwise.result", "a vector of four channels' results", 5.0, 15.0, 30.0),
    ("quad_blocks.operation", "an operation", 100.0, 300.0, 300.0),
    ("quad_blocks.product", "a product of a quad of a position with weights of a vector of filters", 0.2, 0.6, 1.2),
    ("quad_blocks.block", "sums of a vector of filters at a position, loaded and stored again", 0.6, 0.8, 0.8),
    ("quad_blocks.list", "a list of the positions of a word, in a tile", 4.0, 6.0, 6.0),
    ("quad_blocks.result", "a vector of the results of a vector of filters", 40.0, 80.0, 160.0),
    ("quad_permute.operation", "a copy of channels in another order", 100.0, 300.0, 300.0),
    ("quad_permute.result", "a vector of four channels", 2.0, 6.0, 12.0),
    ("linear.operation", "an operation", 200.0, 450.0, 450.0),
    ("linear.weight", "a weight, which comes from far away", 0.2667, 0.33, 0.33),
    ("plain.operation", "an operation", 1000.0, 1000.0, 1000.0),
    ("plain.add", "a multiply-add", 1.0, 1.0, 1.0),
    ("convert.operation", "an operation that writes a tensor in the other layout", 300.0, 700.0, 700.0),
    ("convert.square", "a number of a square of channels and columns, which is moved in vectors", 0.15, 0.35, 0.35),
    ("convert.4", "a number of four bytes that is moved by itself", 0.15, 1.3, 1.3),
    ("convert.1", "a number of a single byte, likewise", 0.5, 1.3, 1.3),
    ("permute.operation", "an operation that puts channels in another order", 300.0, 300.0, 300.0),
    ("permute.number", "a number", 0.1, 0.1, 0.1),
    ("dense.operation", "ONNX Runtime: a convolution", 2000.0, 1400.0, 1400.0),
    ("dense.window", "ONNX Runtime: a multiply-add of a dense convolution", 0.0085, 0.0225, 0.057),
    ("dense.load", "ONNX Runtime: a number that a dense convolution loads, for up to 64 filters at once", 0.1, 0.1, 0.2),
    ("dense.pointwise", "ONNX Runtime: a multiply-add of a dense 1x1 convolution", 0.01, 0.023, 0.06),
    ("dense.depthwise", "ONNX Runtime: a multiply-add of a depthwise convolution", 0.05, 0.045, 0.12),
    ("dense.output", "ONNX Runtime: a number of the output", 0.01, 0.01, 0.02),
    ("dense.int8.operation", "ONNX Runtime: a convolution in integers", 2000.0, 4000.0, 4000.0),
    ("dense.int8.window", "ONNX Runtime: a multiply-add of a dense convolution in integers", 0.0025, 0.0115, 0.03),
    ("dense.int8.pointwise", "ONNX Runtime: a multiply-add of a dense 1x1 convolution in integers", 0.0025, 0.011, 0.03),
    ("dense.int8.depthwise", "ONNX Runtime: a multiply-add of a depthwise convolution in integers", 0.03, 0.08, 0.16),
    ("dense.int8.output", "ONNX Runtime: a number of the output of a convolution in integers", 0.05, 0.2, 0.4),
    ("dense.part", "ONNX Runtime: a part of a network that it runs, with what the engine does before and after", 15000.0, 15000.0, 30000.0),
    ("nchw.number", "a number of the output of an operation without kernels to choose from, beyond its cost in NHWC", 0.05, 0.05, 0.05),
)  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """Nanoseconds by name."""

    nanoseconds: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.nanoseconds[name]

    def seconds(self, counts: Counts) -> float:
        """What so much takes."""
        return 1e-9 * sum(count * self.nanoseconds[name] for name, count in counts.items() if count)

    @cached_property
    def digest(self) -> str:
        """Of the table: plans that were made by it are right for it alone."""
        return hashlib.sha256(repr(sorted(self.nanoseconds.items())).encode()).hexdigest()[:16]

    @classmethod
    def assumed(cls, registers: str) -> Self:
        """Of a machine with such registers."""
        column = 2 + (AVX512, AVX2, NEON).index(registers)
        return cls(MappingProxyType({row[0]: row[column] for row in ROWS if row[column] is not None}))  # type: ignore[misc]


def registers() -> str:
    """Those that code is compiled for."""
    from fineprune.ops.simd.registers import HOST  # with Numba, which those who only read a table do without

    return HOST.name


@cache
def assumed() -> Costs:
    """What is assumed of machines with such registers."""
    return Costs.assumed(registers())


_CURRENT: ContextVar[Callable[[], Costs]] = ContextVar("costs", default=assumed)


def current() -> Costs:
    """The table that holds here: that of `using`, else what is assumed of this machine."""
    return _CURRENT.get()()


@contextmanager
def using(table: Callable[[], Costs]) -> Iterator[None]:
    """Within it, operations are expected to take what this table says. Nobody makes it before somebody asks."""
    token = _CURRENT.set(cache(table))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def seconds(counts: Counts) -> float:
    """What so much takes on this machine."""
    return current().seconds(counts)
