"""Folding: node counts, numbers, the checker, and the reasons of refusals."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fineprune.export.fold_batchnorm import fold_batchnorm, fold_bias
from fineprune.export.functions import MASKED
from fineprune.export.transform import add_functions
from support.onnx_graphs import OPSET, append, conv_graph, op_types, run_onnxruntime, serialize
from support.reference import masked_conv2d
from support.tolerances import FLOAT32

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 5, 7)).astype(np.float32)
W = RANDOM.normal(size=(2, 3, 3, 3)).astype(np.float32) * (RANDOM.random((2, 3, 3, 3)) < 0.5)
B = RANDOM.normal(size=2).astype(np.float32)
MASK = RANDOM.random((3, 3, 5)) < 0.5
GAMMA, BETA, MEAN = (RANDOM.normal(size=2).astype(np.float32) for _ in range(3))
VARIANCE = RANDOM.uniform(0.5, 2, size=2).astype(np.float32)
EPSILON = 0.25


def graph(bias: NDArray | None, mask: NDArray | None, *, norm: bool = True) -> object:
    model = conv_graph((3, 5, 7), (2, 3, 5), W, bias, mask)
    if norm:
        append(model, "BatchNormalization", {"gamma": GAMMA, "beta": BETA, "mean": MEAN, "variance": VARIANCE}, epsilon=EPSILON)
    return model


def normalized(y: NDArray) -> NDArray:
    gamma, beta, mean, variance = (v[:, None, None] for v in (GAMMA, BETA, MEAN, VARIANCE))
    return gamma * (y - mean) / np.sqrt(variance + EPSILON) + beta


@pytest.mark.parametrize("bias", [None, B], ids=["no bias", "bias"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["dense", "masked"])
def test_batchnorm_moves_into_weights_and_bias(bias: NDArray | None, mask: NDArray | None) -> None:
    model = graph(bias, mask)
    assert fold_bias(model) == [] and fold_batchnorm(model) == []
    assert op_types(model) == ["Conv" if mask is None else MASKED]
    folded = model.graph.initializers["layer.weight"].const_value.numpy()
    assert ((folded != 0) == (W != 0)).all()
    add_functions(model, opset=OPSET)
    rtol, atol = FLOAT32
    np.testing.assert_allclose(run_onnxruntime(serialize(model), X), normalized(masked_conv2d(X, W, bias, mask)), rtol=rtol, atol=atol)


def test_without_bias_or_batchnorm_a_masked_conv_gets_zeros() -> None:
    model = graph(None, MASK, norm=False)
    fold_bias(model)
    assert not model.graph.initializers["layer.bias"].const_value.numpy().any()


def test_an_addition_per_position_is_no_bias() -> None:
    model = graph(None, MASK, norm=False)
    per_position = RANDOM.normal(size=(2, 3, 5)).astype(np.float32)
    append(model, "Add", {"other": per_position})
    fold_bias(model)
    assert op_types(model) == [MASKED, "Add"]
    add_functions(model, opset=OPSET)
    rtol, atol = FLOAT32
    expected = masked_conv2d(X, W, None, MASK) + per_position
    np.testing.assert_allclose(run_onnxruntime(serialize(model), X), expected, rtol=rtol, atol=atol)


def test_a_conv_that_is_read_elsewhere_keeps_its_batchnorm() -> None:
    model = graph(None, None)
    norm = model.graph.node("batchnormalization")
    model.graph.outputs.append(norm.inputs[0])
    (refusal,) = fold_batchnorm(model)
    assert (refusal.node, refusal.reason) == ("batchnormalization", "the output of conv has other consumers")
    assert op_types(model) == ["Conv", "BatchNormalization"]


def test_batchnorm_behind_something_else_stays() -> None:
    model = graph(None, None, norm=False)
    append(model, "Relu", {})
    append(model, "BatchNormalization", {"gamma": GAMMA, "beta": BETA, "mean": MEAN, "variance": VARIANCE})
    (refusal,) = fold_batchnorm(model)
    assert refusal.reason == "its input is not the output of a convolution"


def test_weights_shared_with_another_node_are_not_changed_for_it() -> None:
    model = graph(None, None)
    conv = model.graph.node("conv")
    other = append(model, "Relu", {})
    other.replace_input_with(0, conv.inputs[1])
    fold_batchnorm(model)
    assert (model.graph.initializers["layer.weight"].const_value.numpy() == W).all()
    assert conv.inputs[1].name == "layer.weight.2"
