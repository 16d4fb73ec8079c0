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

from fineprune.export.functions import DOMAIN, MASKED_CONVS, OPSETS, UNPACK_WEIGHTS, functions
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

    def op_type(self) -> str:
        if self.mask.all():
            return "Conv"
        if self.w.shape[1] == 1:
            return "MaskedDepthwiseConv"
        pointwise = (*self.w.shape[2:], *self.stride, *self.pads) == (1, 1, 1, 1, 0, 0, 0, 0)
        return "MaskedPointwiseConv" if pointwise else "MaskedConv"

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
    stride, dilation = draw(st.one_of(st.just((1, 1)), pair)), draw(pair)
    pads = draw(st.one_of(st.just((0, 0, 0, 0)), st.tuples(*[st.integers(0, 2)] * 4)))
    least = tuple(dilation[a] * (kernel[a] - 1) + 1 - pads[a] - pads[a + 2] for a in (0, 1))
    height, width = (max(1, least[a]) + draw(st.sampled_from([0, 2, 3, 5])) for a in (0, 1))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density, weight_density = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])), draw(st.sampled_from([0.0, 0.4, 1.0]))
    tap_density = draw(st.sampled_from([0.4, 1.0]))  # taps that no filter uses
    size = output_size((height, width), kernel, stride, pads, dilation)
    w = random.normal(size=(filters, per_group, *kernel)).astype(np.float32)
    return Case(
        x=random.normal(size=(draw(st.integers(1, 3)), groups * per_group, height, width)).astype(np.float32),
        w=w * (random.random(w.shape) < weight_density) * (random.random(w.shape[1:]) < tap_density),
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
    assert op_types(graph)[-1] == case.op_type()
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
    for proto in functions({*MASKED_CONVS, UNPACK_WEIGHTS}, opset):
        assert proto.domain == DOMAIN
        assert {entry.domain: entry.version for entry in proto.opset_import} == {"": opset, DOMAIN: 1}


def test_callees_come_first() -> None:
    assert [proto.name for proto in functions({UNPACK_WEIGHTS}, OPSET)] == ["UnpackMask", UNPACK_WEIGHTS]


def optimized(case: Case, folder: Path) -> onnx.GraphProto:
    """What ONNX Runtime runs of a packed file."""
    graph = case.graph()
    simplify(graph)
    pack_masks(graph)
    pack_weights(graph, smallest_saving=-(10**9))
    add_functions(graph, opset=OPSET)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    # Basic: constant folding and inlining, without layouts of this machine (which ONNX Runtime warns about when it saves).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(serialize(graph), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


def test_onnxruntime_leaves_nothing_to_unpack_at_run_time(tmp_path: Path) -> None:
    assert [node.op_type for node in optimized(example(), tmp_path).node] == ["Conv", "Reshape", "Mul", "Reshape", "Conv"]


def test_a_1x1_kernel_gathers_nothing(tmp_path: Path) -> None:
    case = example()
    pointwise = Case(**{**vars(case), "w": case.w[:, :, :1, :1], "pads": (0, 0, 0, 0)})
    assert [node.op_type for node in optimized(pointwise, tmp_path).node] == ["Mul", "Conv"]


def test_only_taps_that_a_filter_uses_are_gathered(tmp_path: Path) -> None:
    case = example()
    w, mask = np.zeros_like(case.w), case.mask.copy()
    w[0, 0, 0, :2] = w[1, 0, 1, 1:] = 1  # four taps of channel 0, of which two filters use two each
    w[:, 1] = 1  # and all of channel 1,
    mask[1] = False  # which is masked everywhere
    sparse = Case(**{**vars(case), "w": w, "mask": mask})
    gather, convolve = (node for node in optimized(sparse, tmp_path).node if node.op_type == "Conv")
    initializers = {tensor.name: tensor for tensor in onnx.load(tmp_path / "optimized.onnx").graph.initializer}
    assert list(initializers[gather.input[1]].dims) == [3 * 4, 1, 3, 3]
    assert list(initializers[convolve.input[1]].dims) == [2, 3 * 4, 1, 1]


def test_a_registered_kernel_takes_precedence_over_the_body() -> None:
    extensions = pytest.importorskip("onnxruntime_extensions")
    kinds = extensions.PyCustomOpDef

    @extensions.onnx_op(op_type=f"{DOMAIN}::Twice", inputs=[kinds.dt_float], outputs=[kinds.dt_float])
    def kernel(x: NDArray) -> NDArray:
        return x + 100

    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18, "{DOMAIN}" : 1]> g (float[N,2] x) => (float[N,2] y) {{ y = {DOMAIN}.Twice(x) }}'
    )
    model.functions.append(
        onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : 18]> Twice (x) => (y) {{ y = Add(x, x) }}')
    )
    x = np.ones((1, 2), np.float32)
    assert (run_onnxruntime(model.SerializeToString(), x) == 2).all()
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(extensions.get_library_path())
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert (session.run(None, {"x": x})[0] == 101).all()
