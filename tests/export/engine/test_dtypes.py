"""Tensors of other types than float32: declared, planned, copied, fed and returned, as programs and as files beside ONNX Runtime."""

import logging
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fineprune.common.errors import UsageError
from fineprune.export.engine import Session
from fineprune.export.engine.ir.dtypes import DTYPES, FLOAT32, INT8, UINT8, DType, slots
from fineprune.export.engine.ir.network import Box, Layer, Piece, typed
from fineprune.export.engine.ops.assemble import Assemble
from fineprune.export.engine.ops.permute import Permute
from fineprune.export.engine.passes.layouts import conversion_cost
from fineprune.export.engine.passes.memory import Key, arena
from fineprune.export.engine.passes.program import build
from fineprune.export.engine.run.threads import Team
from support.engine_layers import BOX, conv, relu
from support.onnx_comparison import compare

X: Box = (6, 5, 7)


def any_numbers(shape: tuple[int, ...], dtype: DType, seed: int = 0) -> NDArray:
    """All values that a type has; of float32 bit patterns, too."""
    return np.random.default_rng(seed).integers(0, 255, (*shape, dtype.itemsize), np.uint8, endpoint=True).view(dtype)[..., 0]


def assemble(output: str, inputs: tuple[str, ...], *pieces: Piece) -> Assemble:
    return Assemble(name=output, inputs=inputs, output=output, pieces=pieces)


def copying() -> tuple[list[Layer], dict[str, Box]]:
    """x -> every second channel and column, a padded copy, a concatenation of three, its channels shuffled and in another order."""
    boxes: dict[str, Box] = {"x": X, "slice": (3, 5, 4), "pad": (6, 8, 9), "again": (3, 5, 4), "join": (9, 5, 4), "mix": (9, 5, 4)}
    shuffled = [Piece(source=0, size=(3, 5, 4), start=(3 * k, 0, 0), to=(k, 0, 0), to_step=(3, 1, 1)) for k in range(3)]
    layers: list[Layer] = [
        assemble("slice", ("x",), Piece(source=0, size=(3, 5, 4), start=(1, 0, 0), step=(2, 1, 2))),
        assemble("pad", ("x",), Piece(source=0, size=X, to=(0, 1, 2))),
        assemble("again", ("x",), Piece(source=0, size=(3, 5, 4), start=(3, 0, 3))),
        assemble("join", ("slice", "again"), *[Piece(source=k % 2, size=(3, 5, 4), to=(3 * k, 0, 0)) for k in range(3)]),
        Permute(name="mix", inputs=("join",), output="mix", order=ORDER),
        assemble("shuffle", ("mix",), *shuffled),
    ]  # fmt: skip
    return layers, {**boxes, "shuffle": (9, 5, 4)}


ORDER = np.random.default_rng(0).permutation(9)


def copied(x: NDArray) -> dict[str, NDArray]:
    """What `copying` is to make."""
    part, again = x[:, 1::2, :, ::2], x[:, 3:, :, 3:]
    join = np.concatenate([part, again, part], 1)
    mix = join[:, ORDER]
    shuffle = mix.reshape(len(x), 3, 3, 5, 4).swapaxes(1, 2).reshape(mix.shape)
    return {"pad": np.pad(x, ((0, 0), (0, 0), (1, 2), (2, 0))), "join": join, "mix": mix, "shuffle": shuffle}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_copies_keep_type_and_bits(dtype: DType, threads: int) -> None:
    layers, boxes = copying()
    outputs = ["pad", "join", "mix", "shuffle"]
    program = build(layers, boxes, ["x"], outputs, dtypes={"x": dtype})
    assert {program.dtypes[name] for name in outputs} == {dtype}
    team = Team(program, threads)
    for seed in range(3):
        x = any_numbers((4, *X), dtype, seed)
        results = [np.full((4, *boxes[name]), 77, dtype) for name in outputs]
        team.run(4, [x, *results])
        for name, result in zip(outputs, results, strict=True):
            assert result.tobytes() == copied(x)[name].tobytes(), name
    team.close()


def test_tensors_of_several_types_lie_beside_each_other() -> None:
    """Each in its own bytes, in both layouts: what is made of one does not depend on the others."""
    layers: list[Layer] = [conv("a", "x"), relu("a", "b")]
    boxes: dict[str, Box] = dict.fromkeys(("x", "a", "b"), BOX)
    for dtype in DTYPES[1:]:
        layers.append(assemble(f"join {dtype}", (f"in {dtype}",) * 2, *[Piece(source=k, size=BOX, to=(4 * k, 0, 0)) for k in (0, 1)]))
        boxes |= {f"in {dtype}": BOX, f"join {dtype}": (8, *BOX[1:])}
    inputs, outputs = [name for name in boxes if name == "x" or name.startswith("in")], ["b", *[f"join {dtype}" for dtype in DTYPES[1:]]]
    dtypes = {f"in {dtype}": dtype for dtype in DTYPES[1:]}
    team, alone = Team(build(layers, boxes, inputs, outputs, dtypes=dtypes), 2), Team(build(layers[:2], boxes, ["x"], ["b"]), 1)
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((3, *BOX), np.float32)
        others = [any_numbers((3, *BOX), dtype, seed) for dtype in DTYPES[1:]]
        [y, expected] = np.empty((2, 3, *BOX), np.float32)
        joined = [np.empty((3, 8, *BOX[1:]), dtype) for dtype in DTYPES[1:]]
        team.run(3, [x, *others, y, *joined])
        alone.run(3, [x, expected])
        np.testing.assert_array_equal(y, expected)
        for other, join in zip(others, joined, strict=True):
            np.testing.assert_array_equal(join, np.concatenate([other, other], 1))
    team.close()
    alone.close()


def test_who_computes_takes_float32_alone() -> None:
    with pytest.raises(TypeError, match="Conv 'a' cannot compute with 'x' of uint8"):
        build([conv("a", "x")], dict.fromkeys("xa", BOX), ["x"], ["a"], dtypes={"x": UINT8})
    join = assemble("y", ("x", "z"), Piece(source=0, size=BOX), Piece(source=1, size=BOX, to=(4, 0, 0)))
    with pytest.raises(TypeError, match="Assemble 'y' cannot compute with 'x' of uint8, 'z' of int8"):
        typed([join], {"x": UINT8, "z": INT8})
    assert typed([join], {"x": INT8, "z": INT8})["y"] == INT8


def test_types_share_no_buffer_and_take_their_own_room() -> None:
    box = (64, 32, 32)
    sizes = {}
    for dtype in DTYPES:
        first, second = (Key(name, "NHWC", dtype) for name in "ab")
        plan = arena({first: box, second: box}, {}, {first: [0, 1], second: [2, 3]})
        assert plan.buffers[first] == plan.buffers[second] and plan.views[first].dtype == dtype
        sizes[dtype.name] = plan.size
    assert sizes["uint8"] == sizes["int8"] < sizes["float32"] / 3.9 and sizes["int32"] == sizes["float32"]
    keys = [Key("a", "NHWC", dtype) for dtype in DTYPES]
    plan = arena(dict.fromkeys(keys, box), {}, {key: [k, k] for k, key in enumerate(keys)})
    assert len(set(plan.buffers.values())) == len(DTYPES)
    ends = 0
    for key in keys:
        view = plan.views[key]
        assert view.at(0, 0, 0) * key.dtype.itemsize >= ends
        ends = (view.at(63, 31, 31) + 1) * key.dtype.itemsize


def test_constants_of_any_type_lie_in_slots() -> None:
    for dtype in DTYPES:
        numbers = any_numbers((7,), dtype)
        assert slots(numbers).dtype == FLOAT32
        assert slots(numbers).view(dtype)[:7].tobytes() == numbers.tobytes()
        assert not slots(numbers).view(np.uint8)[numbers.nbytes :].any()


def test_conversions_cost_by_type() -> None:
    box = (64, 56, 56)
    by_bytes = [conversion_cost(box, dtype) for dtype in DTYPES]
    assert by_bytes[0] == by_bytes[1] == conversion_cost(box) and by_bytes[2] == by_bytes[3] != by_bytes[0]


def file(nodes: list[Any], outputs: dict[str, int], dtype: DType, constants: dict[str, NDArray], **more: Any) -> bytes:
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    inputs = [helper.make_tensor_value_info("x", kind, ["n", *X])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *box]) for name, box in more.items()]
    made = [helper.make_tensor_value_info(name, number or kind, ["n", None, None, None]) for name, number in outputs.items()]
    initializers = [numpy_helper.from_array(content, name) for name, content in constants.items()]
    graph = helper.make_graph(nodes, "copies", inputs, made, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def moving(dtype: DType) -> bytes:
    """Slice, Pad, Concat, Split, a channel shuffle, Identity and Flatten."""
    nodes = [
        helper.make_node("Slice", ["x", "starts", "ends", "axes", "steps"], ["part"]),
        helper.make_node("Pad", ["x", "pads", "zero"], ["padded"]),
        helper.make_node("Concat", ["part", "part"], ["join"], axis=1),
        helper.make_node("Split", ["x"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Reshape", ["x", "in five"], ["five"]),
        helper.make_node("Transpose", ["five"], ["turned"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["turned", "in four"], ["shuffled"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["right"], ["right too"]),
    ]
    constants = {
        "starts": np.array([1, 1]), "ends": np.array([9, 9]), "axes": np.array([1, 3]), "steps": np.array([2, 1]),
        "pads": np.array([0, 0, 2, 1, 0, 0, 0, 1]), "zero": np.zeros((), dtype),
        "in five": np.array([-1, 2, 3, 5, 7]), "in four": np.array([-1, 6, 5, 7]),
    }  # fmt: skip
    return file(nodes, dict.fromkeys(["join", "padded", "left", "right too", "shuffled", "same"], 0), dtype, constants)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_files_that_move_numbers_are_run_by_the_engine(dtype: DType) -> None:
    content = moving(dtype)
    with Session(content, fallback=False) as session:
        assert [info.type for info in session.get_outputs()] == [session.get_inputs()[0].type] * 6
        assert session.profile(any_numbers((1, *X), dtype), repeats=2)
        with pytest.raises(UsageError, match="'x' is an array of tensor"):
            session.run(None, {"x": np.zeros((1, *X), np.float64)})
    x = [np.nan_to_num(any_numbers((count, *X), dtype, count)) for count in (1, 2, 5)]
    outcome = compare(content, [{"x": numbers} for numbers in x], threads=(1, 2))
    assert outcome.kind == "equal", outcome


def test_what_computes_with_other_types_runs_in_onnxruntime(caplog: pytest.LogCaptureFixture) -> None:
    """A quantised tensor goes through nodes of ONNX Runtime and, joined, through the engine beside a convolution."""
    nodes = [
        helper.make_node("Conv", ["f", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["q"], name="quantise"),
        helper.make_node("Concat", ["q", "x"], ["join"], axis=1, name="join"),
        helper.make_node("MaxPool", ["join"], ["z"], kernel_shape=[2, 2], name="pool"),
        helper.make_node("DequantizeLinear", ["z", "scale", "zero"], ["d"], name="back"),
        helper.make_node("Conv", ["d", "v"], ["y"], name="last"),
    ]
    random = np.random.default_rng(0)
    constants = {
        "w": random.standard_normal((6, 4, 3, 3), np.float32), "v": random.standard_normal((2, 12, 3, 3), np.float32),
        "scale": np.array(0.25, np.float32), "zero": np.array(128, np.uint8),
    }  # fmt: skip
    content = file(nodes, {"y": TensorProto.FLOAT, "join": 0}, UINT8, constants, f=(4, 5, 7))
    with caplog.at_level(logging.INFO):
        Session(content).close()
    assert "MaxPool (inputs of uint8)" in caplog.text
    feeds = [{"x": any_numbers((count, *X), UINT8), "f": random.standard_normal((count, 4, 5, 7), np.float32)} for count in (1, 3)]
    outcome = compare(content, feeds, threads=(1, 2))
    assert outcome.kind == "equal", outcome
