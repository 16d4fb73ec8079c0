"""ONNX Runtime's convolution, which computes what masks drop as well: what it comes to, and how long it takes, to compare kernels with.

    seconds of one = (seconds of a chain of CHAIN - seconds of a chain of one) / (CHAIN - 1)

so that neither the call nor changes of layout count, which a dense network has at its ends alone.
"""

import time
from collections.abc import Sequence
from math import prod

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
"""Those that are measured."""


def measured(shapes: Sequence[ConvShape], seconds: float) -> NDArray[np.float64]:
    """Seconds of each, on one thread: the least of as many rounds as fit in `seconds`."""
    random = np.random.default_rng(0)
    sessions = [[_chain(shape, count, random) for count in (1, CHAIN)] for shape in shapes]
    feeds = [{"x": random.standard_normal((1, shape.channels, shape.height, shape.width), np.float32)} for shape in shapes]
    least, end = np.full((len(shapes), 2), np.inf), time.perf_counter() + seconds
    while time.perf_counter() < end or not np.isfinite(least).all():
        for k, pair in enumerate(sessions):
            for chain, session in enumerate(pair):
                started = time.perf_counter()
                session.run(None, feeds[k])
                least[k, chain] = min(least[k, chain], time.perf_counter() - started)
    found: NDArray[np.float64] = np.maximum((least[:, 1] - least[:, 0]) / (CHAIN - 1), 1e-7)
    return found


def _chain(shape: ConvShape, count: int, random: np.random.Generator):  # type: ignore[no-untyped-def]  # ONNX Runtime has no types
    """A session of so many convolutions with Relu, each of which reads the one before."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    sizes = (shape.filters, shape.channels // shape.groups, *shape.kernel)
    nodes, weights = [], []
    for k in range(count):
        source, target = f"y{k - 1}" if k else "x", f"y{k}" if k < count - 1 else "y"
        weights.append(numpy_helper.from_array(random.standard_normal(sizes, np.float32) / prod(sizes[1:]), f"w{k}"))
        nodes.append(helper.make_node("Conv", [source, f"w{k}"], [f"c{k}"], group=shape.groups, pads=list(shape.pads)))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [target]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, *places))
        for name, channels, places in (("x", shape.channels, (shape.height, shape.width)), ("y", shape.filters, shape.output))
    ]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
