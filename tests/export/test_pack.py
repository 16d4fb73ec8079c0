"""Compact masks and weights: the layout, what is packed and what is left alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fineprune.export.functions import UNPACK_WEIGHTS
from fineprune.export.graph import add_initializer
from fineprune.export.pack import drop_full_masks, pack_masks, pack_weights, unpack_weights
from fineprune.export.transform import add_functions, simplify
from fineprune.ops import mask_bits
from support.onnx_graphs import OPSET, conv_graph, op_types, run_onnxruntime, serialize
from support.reference import masked_conv2d
from support.tolerances import FLOAT32


def pruned(shape: tuple[int, ...], density: float, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) * (random.random(shape) < density)).astype(np.float32)


@settings(deadline=None)
@given(st.tuples(*[st.sampled_from([1, 2, 3, 5])] * 4), st.sampled_from([0.0, 0.5, 1.0]))
def test_weights_round_trip(shape: tuple[int, ...], density: float) -> None:
    weights = pruned(shape, density)
    assert (unpack_weights(weights[weights != 0], mask_bits.pack(weights != 0), shape) == weights).all()


def test_pruned_weights_without_block_mask_feed_a_plain_conv() -> None:
    w, x = pruned((7, 5, 3, 3), 0.44), pruned((2, 5, 6, 7), 1.0, seed=1)
    graph = conv_graph((5, 6, 7), (7, 4, 5), w)
    assert pack_weights(graph) == []
    add_functions(graph, opset=OPSET)
    assert op_types(graph) == [UNPACK_WEIGHTS, "Conv"]
    assert sorted(graph.graph.initializers) == ["layer.weight.bits", "layer.weight.values"]
    assert graph.graph.initializers["layer.weight.values"].shape == (np.count_nonzero(w),)
    rtol, atol = FLOAT32
    np.testing.assert_allclose(run_onnxruntime(serialize(graph), x), masked_conv2d(x, w, None, None), rtol=rtol, atol=atol)


def test_dense_weights_stay() -> None:
    graph = conv_graph((5, 6, 7), (7, 4, 5), pruned((7, 5, 3, 3), 1.0))
    assert pack_weights(graph) == []
    assert op_types(graph) == ["Conv"] and list(graph.graph.initializers) == ["layer.weight"]


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_vectors_stay(dtype: type) -> None:
    """Zero points and biases of many filters."""
    graph = conv_graph((5, 6, 7), (7, 4, 5), pruned((7, 5, 3, 3), 1.0))
    add_initializer(graph, "zeros", np.zeros(4096, dtype))
    assert pack_weights(graph) == []
    assert "zeros" in graph.graph.initializers and UNPACK_WEIGHTS not in op_types(graph)


def test_few_zeros_stay_dense_and_say_why() -> None:
    w = pruned((2, 3, 3, 3), 1.0)
    w[0, 0, 0, :2] = 0
    graph = conv_graph((3, 5, 7), (2, 3, 5), w, mask=np.zeros((3, 3, 5), bool))
    (refusal,) = pack_weights(graph)
    assert (refusal.rule, refusal.node) == ("pack_weights", "layer.weight")
    assert refusal.reason == "2 zeros of 54 weights would save no 512 bytes"


@pytest.mark.parametrize("full", [True, False])
def test_only_a_full_mask_is_dropped(full: bool) -> None:
    mask = np.ones((3, 3, 5), bool)
    mask[1, 2, 2] = full
    graph = conv_graph((3, 5, 7), (2, 3, 5), pruned((2, 3, 3, 3), 1.0), mask=mask)
    drop_full_masks(graph)
    assert op_types(graph) == ["Conv" if full else "MaskedConv"]


def test_a_full_mask_with_bias_is_that_convolution() -> None:
    w, x, bias = pruned((4, 3, 3, 2), 1.0), pruned((2, 3, 7, 5), 1.0, seed=1), pruned((4,), 1.0, seed=2)
    geometry = {"strides": (2, 1), "pads": (1, 0, 0, 2), "dilations": (1, 2)}
    graph = conv_graph((3, 7, 5), (4, 3, 5), w, bias, np.ones((3, 3, 5), bool), **geometry)
    assert simplify(graph) == []
    assert op_types(graph) == ["Conv"] and sorted(graph.graph.initializers) == ["layer.bias", "layer.weight"]
    rtol, atol = FLOAT32
    expected = masked_conv2d(x, w, bias, None, (2, 1), (1, 0, 0, 2), (1, 2))
    np.testing.assert_allclose(run_onnxruntime(serialize(graph), x), expected, rtol=rtol, atol=atol)


def test_a_mask_that_is_computed_stays_and_says_why() -> None:
    graph = conv_graph((3, 5, 7), (2, 3, 5), pruned((2, 3, 3, 3), 1.0), mask=np.zeros((3, 3, 5), bool))
    mask = graph.graph.initializers.pop("layer.ffp_mask")
    mask.const_value = None
    graph.graph.inputs.append(mask)
    (refusal,) = pack_masks(graph)
    assert (refusal.rule, refusal.node, refusal.reason) == ("pack_masks", "conv", "its mask is not constant")
