"""Which layers become one, and that they compute the same."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fineprune.export.engine.ir.network import Box, Layer, Piece
from fineprune.export.engine.ops.assemble import Assemble
from fineprune.export.engine.ops.maps import Map
from fineprune.export.engine.passes.fuse import fuse
from fineprune.export.engine.passes.program import build
from fineprune.export.engine.run.threads import Team
from support.engine_layers import BOX, add, conv, mapped, relu


def facts(layer: Layer) -> tuple[Any, ...]:
    return layer.name, layer.inputs, layer.output, getattr(layer, "low", None), getattr(layer, "high", None)


def test_a_residual_block_is_two_operations() -> None:
    layers = [conv("a", "x"), relu("a", "ra"), conv("b", "ra"), add("b", "x", "s"), relu("s", "y")]
    assert [facts(layer) for layer in fuse(layers, {"y"})] == [("a", ("x",), "ra", 0, np.inf), ("b", ("ra", "x"), "y", 0, np.inf)]


def test_the_later_of_two_convolutions_takes_the_sum() -> None:
    layers = [conv("short", "x"), conv("long", "x"), add("long", "short", "s")]
    assert [facts(layer)[:3] for layer in fuse(layers, {"s"})] == [("short", ("x",), "short"), ("long", ("x", "short"), "s")]


@pytest.mark.parametrize("inputs", [("x", "s"), ("s", "x")])
def test_a_product_with_the_own_sigmoid_is_one_operation(inputs: tuple[str, str]) -> None:
    [fused] = fuse([mapped("sigmoid", "s", "x"), mapped("multiply", "y", *inputs)], {"y"})
    assert isinstance(fused, Map) and (fused.function, fused.inputs, fused.output) == ("silu", ("x",), "y")


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ([mapped("sigmoid", "s", "x"), mapped("multiply", "y", "z", "s")], {"y"}),  # of another tensor
        ([mapped("sigmoid", "s", "x"), mapped("multiply", "y", "x", "s")], {"y", "s"}),  # read from outside
        ([mapped("sigmoid", "s", "x", low=0.5), mapped("multiply", "y", "x", "s")], {"y"}),  # clipped
        ([conv("a", "x"), relu("a", "r"), add("a", "r", "y")], {"y"}),  # read twice
        ([conv("a", "x"), relu("a", "y")], {"a", "y"}),  # read from outside
        ([conv("a", "x"), add("a", "a", "y")], {"y"}),  # twice the same
        ([conv("a", "x", low=0.0), add("a", "x", "y")], {"y"}),  # clipped before the sum
    ],
)
def test_what_is_needed_elsewhere_stays(layers: list[Layer], kept: set[str]) -> None:
    assert [facts(layer) for layer in fuse(layers, kept)] == [facts(layer) for layer in layers]


@given(bounds=st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=3), value=st.integers(-5, 5))
def test_clips_of_clips(bounds: list[tuple[int, int]], value: int) -> None:
    layers = [relu(f"t{k}", f"t{k + 1}", low, low + width) for k, (low, width) in enumerate(bounds)]
    [fused] = fuse(layers, {f"t{len(bounds)}"})
    expected = value
    for low, width in bounds:
        expected = min(max(expected, low), low + width)
    assert isinstance(fused, Map)
    assert min(max(value, fused.low), fused.high) == expected


def assembled(layer: Layer, box: Box, **tensors: np.ndarray) -> np.ndarray:
    assert isinstance(layer, Assemble)
    y = np.zeros(box)
    for piece in layer.pieces:
        source, target = (
            np.ix_(*(first + step * np.arange(count) for first, step, count in zip(start, steps, piece.size, strict=True)))
            for start, steps in ((piece.start, piece.step), (piece.to, piece.to_step))
        )
        y[target] = tensors[layer.inputs[piece.source]][source]
    return y


boxes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@given(inner=boxes, outer=boxes, starts=st.tuples(boxes, boxes), steps=st.tuples(boxes, boxes), to=boxes, trailing=st.booleans())
def test_slices_of_slices(inner: Box, outer: Box, starts: tuple[Box, Box], steps: tuple[Box, Box], to: Box, trailing: bool) -> None:
    x = np.random.default_rng(0).standard_normal((12, 12, 12))
    first = Piece(source=0, size=inner, start=starts[0], step=steps[0])
    second = Piece(source=0, size=outer, start=starts[1], step=steps[1], to=to)
    extent = tuple(a + b * c for a, b, c in zip(starts[1], steps[1], outer, strict=True))
    middle = tuple(max(a, b) if trailing else a for a, b in zip(inner, extent, strict=True))
    if not trailing and any(a > b for a, b in zip(extent, inner, strict=True)):
        return
    whole = (8, 8, 8)
    layers = [
        Assemble(name="a", inputs=("x",), output="a", pieces=(first,)),
        Assemble(name="b", inputs=("a",), output="b", pieces=(second,)),
    ]
    expected = assembled(layers[1], whole, a=assembled(layers[0], (middle[0], middle[1], middle[2]), x=x))
    fused = fuse(layers, {"b"})
    reads_zeros = any(s + t * (n - 1) >= m for s, t, n, m in zip(starts[1], steps[1], outer, inner, strict=True))
    assert len(fused) == (2 if reads_zeros else 1)
    if not reads_zeros:
        np.testing.assert_array_equal(assembled(fused[0], whole, x=x), expected)
    assert len(fuse(layers, {"a", "b"})) == 2


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), groups=st.integers(1, 4), twice=st.booleans())
def test_shuffles_of_joined_tensors(sizes: list[int], groups: int, twice: bool) -> None:
    """One operation where each group of channels comes from one of the tensors."""
    random, ends = np.random.default_rng(0), np.cumsum([0, *sizes]).tolist()
    channels = ends[-1] // groups * groups
    names = ["a" if twice else f"t{k}" for k in range(len(sizes))]
    tensors = {name: random.standard_normal((size if not twice else 4, 2, 3)) for name, size in zip(names, sizes, strict=True)}
    joined = Assemble(
        name="joined",
        inputs=tuple(names),
        output="joined",
        pieces=tuple(Piece(source=k, size=(size, 2, 3), to=(ends[k], 0, 0)) for k, size in enumerate(sizes)),
    )
    if channels == 0:
        return
    each = channels // groups
    pieces = tuple(Piece(source=0, size=(each, 2, 3), start=(q * each, 0, 0), to=(q, 0, 0), to_step=(groups, 1, 1)) for q in range(groups))
    shuffled = Assemble(name="y", inputs=("joined",), output="y", pieces=pieces)
    expected = assembled(shuffled, (channels, 2, 3), joined=assembled(joined, (ends[-1], 2, 3), **tensors))
    fused = fuse([joined, shuffled], {"y"})
    whole = all(any(ends[k] <= q * each and (q + 1) * each <= ends[k + 1] for k in range(len(sizes))) for q in range(groups))
    assert len(fused) == (1 if whole else 2)
    if whole:
        np.testing.assert_array_equal(assembled(fused[0], (channels, 2, 3), **tensors), expected)
    assert len(fuse([joined, shuffled], {"joined", "y"})) == 2


def test_a_tensor_that_is_joined_with_itself_stays_where_it_is() -> None:
    """Joined by one operation, it is read three times, though it is one input: it cannot be made within the result."""
    box, narrow = (16, *BOX[1:]), conv("a", "x")
    pieces = tuple(Piece(source=k, size=box, to=(16 * k, 0, 0)) for k in range(3))
    shuffle = tuple(Piece(source=0, size=box, start=(16 * q, 0, 0), to=(16 * q, 0, 0)) for q in range(3))
    weights, bias = narrow.weights.repeat(4, 0), np.arange(16, dtype=np.float32)
    layers: list[Layer] = [
        replace(narrow, shape=replace(narrow.shape, filters=16), weights=weights, bias=bias),
        Assemble(name="j", inputs=("a", "a", "a"), output="j", pieces=pieces),
        Assemble(name="y", inputs=("j",), output="y", pieces=shuffle),
    ]
    assert len(fuse(layers, {"y"})) == 2
    x = np.random.default_rng(0).standard_normal((1, *BOX), np.float32)
    outputs = []
    for kept in (["y"], ["a", "y"]):
        program = build(layers, {"x": BOX, "a": box, "j": (48, *BOX[1:]), "y": (48, *BOX[1:])}, ["x"], kept)
        results = [np.zeros((1, *program.boxes[name]), np.float32) for name in kept]
        Team(program, 1).run(1, [x, *results])
        outputs.append(results)
    np.testing.assert_array_equal(outputs[0][0], outputs[1][1])
    np.testing.assert_array_equal(outputs[0][0], np.concatenate([outputs[1][0]] * 3, 1))
