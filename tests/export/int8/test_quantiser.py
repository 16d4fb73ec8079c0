"""Which layers go back to float32, against trying every set of them."""

from itertools import combinations
from typing import Any

import numpy as np
import onnx
import pytest
from onnxscript import ir

from fineprune.common.errors import UsageError
from fineprune.common.progress import Silent
from fineprune.export.exporter import INT8_OPSET
from fineprune.export.int8.observe import Runner, copied, histograms
from fineprune.export.int8.quantiser import Int8Config, Judge, Quantiser
from fineprune.export.int8.rewrite import measured, quantise
from fineprune.ops.ranges import minmax


def chain() -> Any:
    """Three 1x1 convolutions and a mean; one channel of the first is so large that the grid loses the others, which alone are read."""
    random = np.random.default_rng(3)
    weights = [random.normal(size=(4, 4, 1, 1)).astype(np.float32) for _ in range(3)]
    weights[0] *= np.float32([100, 1, 1, 1]).reshape(-1, 1, 1, 1)
    weights[1][:, 0] = 0
    names = ["x", "a", "b", "c"]
    nodes = [onnx.helper.make_node("Conv", [names[k], f"w{k}"], [names[k + 1]], name=f"layer{k}") for k in range(3)]
    nodes += [onnx.helper.make_node("GlobalAveragePool", ["c"], ["m"]), onnx.helper.make_node("Flatten", ["m"], ["y"])]
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4, 2, 2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", INT8_OPSET)], ir_version=10)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))


X = np.random.default_rng(0).normal(size=(400, 4, 2, 2)).astype(np.float32)


def agreement(kept: tuple[str, ...]) -> float:
    """Share of X that the network answers as in float32."""
    model = chain()
    found = histograms(model, measured(model), X, INT8_OPSET, Silent())
    candidate = copied(model)
    quantise(candidate, {name: minmax(histogram) for name, histogram in found.items()}, kept)
    answers = [Runner(one, INT8_OPSET).logits(X, Silent(), "").argmax(1) for one in (model, candidate)]
    return float((answers[0] == answers[1]).mean())


def kept(max_drop: float | None, judge: Judge | None) -> tuple[str, ...]:
    quantiser = Quantiser(samples=X, config=Int8Config(ranges="minmax", max_drop=max_drop), judge=judge)
    quantiser.apply(chain(), INT8_OPSET)
    assert quantiser.layers == ("layer0", "layer1", "layer2")
    return quantiser.kept


def lost(layers: tuple[str, ...]) -> float:
    """Percentage points of agreement."""
    return 100 * (1 - agreement(layers))


def test_no_more_layers_stay_than_have_to() -> None:
    assert kept(None, None) == ()
    assert kept(lost(()), Judge(images=X)) == ()
    allowed = min(lost(some) for some in combinations(("layer0", "layer1", "layer2"), 2))
    assert allowed < lost(())
    stay = kept(allowed, Judge(images=X))
    assert len(stay) == 2 and lost(stay) <= allowed < lost(stay[:-1])
    assert lost(kept(0, Judge(images=X))) == 0


def test_a_score_of_ones_own_judges() -> None:
    model = chain()
    Quantiser(samples=X, config=Int8Config(ranges="minmax")).apply(model, INT8_OPSET)
    labels = Runner(model, INT8_OPSET).logits(X, Silent(), "").argmax(1)
    judge = Judge(images=X, score=lambda outputs, exact: 100 * float((outputs.argmax(1) == labels).mean()))
    assert kept(0, judge) == () != kept(0, Judge(images=X))


def test_ranges_are_those_of_the_tensors() -> None:
    found = histograms(chain(), ["x", "a"], X, INT8_OPSET, Silent())
    a = Runner(chain(), INT8_OPSET, ["a"]).logits(X, Silent(), "")
    for tensor, histogram in ((X, found["x"]), (a, found["a"])):
        assert (histogram.low, histogram.high) == (tensor.min(), tensor.max())
        assert histogram.counts.sum() == tensor.size
        expected = np.histogram(tensor, 2048, (float(tensor.min()), float(tensor.max())))[0]
        # Numbers on the edge of two bins fall to either, as the last bit of a sum falls.
        assert np.abs(np.cumsum(histogram.counts - expected)).max() <= 1


def test_no_layer_and_nothing_to_judge_by_are_named() -> None:
    with pytest.raises(UsageError, match="needs images to judge by"):
        kept(1.0, None)
    model = chain()
    for node in list(model.graph):
        if node.op_type == "Conv":
            node.op_type = "Unknown"
    with pytest.raises(UsageError, match="no convolution or linear layer"):
        Quantiser(samples=X).apply(model, INT8_OPSET)
