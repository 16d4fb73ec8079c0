"""ONNX Runtime's convolution, which computes what masks drop as well: what it comes to, and how long it takes, to compare kernels with.

    seconds of one = (seconds of a chain of CHAIN - seconds of a chain of one) / (CHAIN - 1)

so that neither the call nor changes of layout count, which a dense network has at its ends alone. In float32, and on eight-bit grids (a QDQ
file, of which ONNX Runtime makes convolutions of bytes).
"""

import time
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.conv import ConvShape

CHAIN = 4
SHAPES = tuple(
    ConvShape(
        channels=channels,
        filters=channels,
        height=side,
        width=side,
        kernel=(kernel, kernel),
        pads=(kernel // 2,) * 4,
        groups=groups,
    )
    for channels, side, kernel, groups in (
        (16, 32, 3, 1),
        (32, 16, 3, 1),
        (64, 8, 3, 1),
        (64, 16, 3, 1),
        (32, 28, 1, 1),
        (128, 7, 1, 1),
        (32, 16, 3, 32),
        (96, 14, 3, 96),
    )
)
COMPARED = tuple((shape, integers) for integers in (False, True) for shape in SHAPES)
"""What is measured, each in float32 and in integers."""


def measured(compared: Sequence[tuple[ConvShape, bool]], seconds: float) -> NDArray[np.float64]:
    """Seconds of each, on one thread: the least of as many rounds as fit in `seconds`."""
    random = np.random.default_rng(0)
    sessions = [[_session(shape, count, integers, random) for count in (1, CHAIN)] for shape, integers in compared]
    feeds = [{"x": _numbers(random, (1, shape.channels, shape.height, shape.width), integers)} for shape, integers in compared]
    least, end = np.full((len(compared), 2), np.inf), time.perf_counter() + seconds
    while time.perf_counter() < end or not np.isfinite(least).all():
        for k, pair in enumerate(sessions):
            for chain, session in enumerate(pair):
                started = time.perf_counter()
                session.run(None, feeds[k])
                least[k, chain] = min(least[k, chain], time.perf_counter() - started)
    found: NDArray[np.float64] = np.maximum((least[:, 1] - least[:, 0]) / (CHAIN - 1), 1e-7)
    return found


def _numbers(random: np.random.Generator, shape: tuple[int, ...], integers: bool) -> NDArray[Any]:
    return random.integers(0, 256, shape, np.uint8) if integers else random.standard_normal(shape, np.float32)


def _session(shape: ConvShape, count: int, integers: bool, random: np.random.Generator) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(chain(shape, count, integers, random), options, providers=["CPUExecutionProvider"])


def chain(shape: ConvShape, count: int, integers: bool, random: np.random.Generator) -> bytes:
    """A file of so many convolutions with Relu, each of which reads the one before."""
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.UINT8 if integers else TensorProto.FLOAT
    ends = [
        helper.make_tensor_value_info(name, kind, (1, channels, *places))
        for name, channels, places in (("x", shape.channels, (shape.height, shape.width)), ("y", shape.filters, shape.output))
    ]
    sizes = (shape.filters, shape.channels // shape.groups, *shape.kernel)
    grid = {"scale": np.float32(0.1), "zero": np.uint8(0), "zeros": np.int8(0)}
    constants, nodes = dict[str, Any](grid if integers else {}), list[Any]()
    for k in range(count):
        source, target = f"y{k - 1}" if k else "x", f"y{k}" if k < count - 1 else "y"
        weights = f"w{k}"
        if integers:
            constants[weights] = random.integers(-64, 65, sizes, np.int8)
            nodes.append(helper.make_node("DequantizeLinear", [source, "scale", "zero"], [f"x{k}"]))
            nodes.append(helper.make_node("DequantizeLinear", [weights, "scale", "zeros"], [f"f{k}"]))
            source, weights = f"x{k}", f"f{k}"
        else:
            constants[weights] = random.standard_normal(sizes, np.float32) / prod(sizes[1:])
        nodes.append(helper.make_node("Conv", [source, weights], [f"c{k}"], group=shape.groups, pads=list(shape.pads)))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}" if integers else target]))
        if integers:
            nodes.append(helper.make_node("QuantizeLinear", [f"r{k}", "scale", "zero"], [target]))
    stored = [numpy_helper.from_array(np.asarray(content), name) for name, content in constants.items()]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], stored)
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    return made
