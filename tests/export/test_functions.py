"""The function bodies against the naive loops: every geometry and density, in ONNX Runtime and in onnx.reference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fineprune.export.functions import DOMAIN, OPSETS, UNPACK_WEIGHTS, functions
from fineprune.export.pack import pack_masks, pack_weights
from fineprune.export.transform import add_functions, inline, simplify
from support.onnx_graphs import OPSET, conv_graph, op_types, run_onnxruntime, run_reference, serialize
from support.reference import masked_conv2d, output_size
from support.tolerances import FLOAT32


@dataclass(frozen=True)
class Case:
    x: NDArray
    w: NDArray
    bias: NDArray | None
    mask: NDArray
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    def expected(self) -> NDArray:
        return masked_conv2d(self.x, self.w, self.bias, self.mask, self.stride, self.pads, self.dilation, self.groups)

    def graph(self) -> Any:
        output_shape = (len(self.w), *self.mask.shape[1:])
        geometry = {"strides": self.stride, "pads": self.pads, "dilations": self.dilation, "group": self.groups}
        return conv_graph(self.x.shape[1:], output_shape, self.w, self.bias, self.mask, **geometry)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (5, 1), (1, 5), (3, 2)]))
    filters = groups * draw(st.integers(1, 3))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1), (1, 2)]))
    pair = st.tuples(st.integers(1, 2), st.integers(1, 3))
    stride, dilation = draw(pair), draw(pair)
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    least = tuple(dilation[a] * (kernel[a] - 1) + 1 - pads[a] - pads[a + 2] for a in (0, 1))
    height, width = (max(1, least[a]) + draw(st.sampled_from([0, 2, 3, 5])) for a in (0, 1))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density, weight_density = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])), draw(st.sampled_from([0.0, 0.4, 1.0]))
    size = output_size((height, width), kernel, stride, pads, dilation)
    w = random.normal(size=(filters, per_group, *kernel)).astype(np.float32)
    return Case(
        x=random.normal(size=(draw(st.integers(1, 3)), groups * per_group, height, width)).astype(np.float32),
        w=w * (random.random(w.shape) < weight_density),
        bias=draw(st.sampled_from([None, random.normal(size=filters).astype(np.float32)])),
        mask=random.random((groups * per_group, *size)) < density,
        stride=stride,
        pads=pads,
        dilation=dilation,
        groups=groups,
    )


def close(actual: NDArray, expected: NDArray) -> None:
    rtol, atol = FLOAT32
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_packed_functions_are_the_naive_loops(case: Case) -> None:
    graph = case.graph()
    simplify(graph)
    pack_masks(graph)
    pack_weights(graph, smallest_saving=-(10**9))  # pack everything, however small
    add_functions(graph, opset=OPSET)
    masked = "MaskedDepthwiseConv" if case.w.shape[1] == 1 else "MaskedConv"
    assert op_types(graph)[-1] == ("Conv" if case.mask.all() else masked)
    assert UNPACK_WEIGHTS in op_types(graph)
    content = serialize(graph)
    close(run_onnxruntime(content, case.x), case.expected())
    close(run_reference(content, case.x), case.expected())


@settings(max_examples=15, deadline=None)
@given(cases())
def test_inlined_bodies_are_the_naive_loops(case: Case) -> None:
    graph = case.graph()
    simplify(graph)
    inline(graph, opset=OPSET)
    assert not graph.functions and all(node.domain == "" for node in graph.graph)
    content = serialize(graph)
    close(run_onnxruntime(content, case.x), case.expected())
    close(run_reference(content, case.x), case.expected())


def example() -> Case:
    random = np.random.default_rng(0)
    return Case(
        x=random.normal(size=(2, 3, 5, 7)).astype(np.float32),
        w=random.normal(size=(2, 3, 3, 3)).astype(np.float32),
        bias=random.normal(size=2).astype(np.float32),
        mask=random.random((3, 5, 7)) < 0.5,
        stride=(1, 1),
        pads=(1, 1, 1, 1),
        dilation=(1, 1),
        groups=1,
    )


def test_a_wrong_mask_is_seen() -> None:
    case = example()
    flipped = Case(**{**vars(case), "mask": ~case.mask})
    graph = flipped.graph()
    simplify(graph)
    add_functions(graph, opset=OPSET)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        close(run_onnxruntime(serialize(graph), case.x), case.expected())


@pytest.mark.parametrize("opset", OPSETS)
def test_bodies_are_valid_in_every_opset(opset: int) -> None:
    for proto in functions({"MaskedConv", "MaskedDepthwiseConv", UNPACK_WEIGHTS}, opset):
        assert proto.domain == DOMAIN
        assert {entry.domain: entry.version for entry in proto.opset_import} == {"": opset, DOMAIN: 1}


def test_callees_come_first() -> None:
    assert [proto.name for proto in functions({UNPACK_WEIGHTS}, OPSET)] == ["UnpackMask", UNPACK_WEIGHTS]


def test_onnxruntime_leaves_nothing_to_unpack_at_run_time(tmp_path: Path) -> None:
    graph = example().graph()
    simplify(graph)
    pack_masks(graph)
    pack_weights(graph, smallest_saving=-(10**9))
    add_functions(graph, opset=OPSET)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    # Basic: constant folding and inlining, without layouts of this machine (which ONNX Runtime warns about when it saves).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(serialize(graph), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    assert [node.op_type for node in optimized.graph.node] == ["Conv", "Reshape", "Mul", "Reshape", "Conv"]
