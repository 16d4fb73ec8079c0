"""The rule that puts a float32 graph on eight-bit grids, in standard operators (QDQ):

    Y = Conv(X, W, B)     ->   Y' = Q(Conv(DQ(X'), DQ(W'), DQ(B')))        X', Y' uint8, W' int8, B' int32 (ops/grids.py)

Q is QuantizeLinear, DQ DequantizeLinear. A runtime that knows the pattern computes in integers, acc = sum (X' - z_x) W' + B',
Y' = clip(round(acc s_x s_f / s_y) + z_y); any other runs it as it is written. A layer (Conv, Gemm) brings its weights; additions, joins
and averages have a grid of their own for their result; what only moves or chooses values keeps the grid that they have. ReLU, and a Clip
from zero up, is what QuantizeLinear does by itself where zero is its lowest number: it goes. A Gemm that makes the graph's output stays
float32 behind its sum. All other operators compute in float32 between DQ and Q.

    Y = MaskedConv(X, W, M, B)     ->   Y' = Q(MaskedConv(DQ(X'), DequantizeWeights(W'), M, B'))        B' float32, whole numbers of s_x s_f

It has the same integers; a runtime that does not know it computes its function in float32.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

from fineprune.ops.grids import Grid, integer_bias, integer_weights, weight_scales

from ..functions import DEQUANTIZE_WEIGHTS, DOMAIN
from ..graph import add_initializer, bypass, constant, is_masked_conv, remove_unused, set_constant, sole_consumer

LAYERS = ("Conv", "Gemm")
MEASURED = ("Add", "AveragePool", "Concat", "GlobalAveragePool")
"""Operators whose result has a grid of its own."""
KEEPING = ("Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators whose result is made of values of their first input, and of zeros."""


def layers(model: Any) -> list[Any]:
    """The nodes whose weights can become integers."""
    return [node for node in model.graph if _is_layer(node)]


def measured(model: Any) -> list[str]:
    """Names of the tensors whose ranges `quantise` needs: whatever operators on grids read and make."""
    nodes = [node for node in model.graph if node.op_type not in KEEPING and _on_grids(node)]
    tensors = [value for node in nodes for value in (*_activations(node), (_absorbed(node) or node).outputs[0])]
    return list({value.name: None for value in tensors})


def quantise(model: Any, ranges: Mapping[str, tuple[float, float]], kept: Collection[str] = ()) -> None:
    """Rewrite the graph in place; ranges: of every tensor of `measured`; kept: names of layers that stay in float32."""
    _Rewriting(model, ranges).run(kept)
    remove_unused(model)


class _Rewriting:
    def __init__(self, model: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
        self.model = model
        self.grids = {name: Grid.of(*ends) for name, ends in ranges.items()}
        self.constants: dict[tuple[str, bytes, bool], Any] = {}
        """The output of what dequantizes weights, by their name and scales, and whether for a masked convolution: layers may share them."""
        self.on_grid: dict[Any, Grid] = {}
        """The grids of the outputs of DequantizeLinear."""
        self.scalars: dict[tuple[str, float], Any] = {}

    def run(self, kept: Collection[str]) -> None:
        for node in list(self.model.graph):
            layer = _is_layer(node) and node.name not in kept
            if not layer and not (_on_grids(node) and not _is_layer(node) and any(value in self.on_grid for value in node.inputs)):
                continue
            for index, value in enumerate(node.inputs):
                if value in _activations(node) and value not in self.on_grid:
                    node.replace_input_with(index, self.between(value))
            if layer:
                self.weights(node)
            self.result(node)

    def between(self, value: Any) -> Any:
        """`value` on its grid, for readers that compute in integers; the others keep it as it is."""
        taken = next((use for use, _ in value.uses() if use.op_type == "QuantizeLinear"), None)
        if taken is not None:
            return taken.outputs[0].uses()[0][0].outputs[0]
        quantize, dequantize = self.pair(value, self.grids[value.name])
        producer = value.producer()
        if producer is None:
            self.model.graph.insert_before(self.model.graph[0], [quantize, dequantize])
        else:
            self.model.graph.insert_after(producer, [quantize, dequantize])
        return dequantize.outputs[0]

    def result(self, node: Any) -> None:
        """Put what the node makes on a grid, and take away a ReLU behind it."""
        output = node.outputs[0]
        if (absorbed := _absorbed(node)) is not None:
            grid = self.grids[absorbed.outputs[0].name]
            bypass(self.model, absorbed, output)
        elif output.is_graph_output() and node.op_type in ("Gemm", *KEEPING):
            return
        else:
            grid = self.on_grid[node.inputs[0]] if node.op_type in KEEPING else self.grids[output.name]
        quantize, dequantize = self.pair(output, grid)
        self.model.graph.insert_after(node, [quantize, dequantize])
        final = dequantize.outputs[0]
        if output.is_graph_output():
            final.name, output.name = output.name, f"{output.name}.float"
            final.shape, final.type = output.shape, output.type
        for user, index in list(output.uses()):
            if user is not quantize:
                user.replace_input_with(index, final)
        for index, value in enumerate(self.model.graph.outputs):
            if value is output:
                self.model.graph.outputs[index] = final

    def pair(self, value: Any, grid: Grid) -> tuple[Any, Any]:
        """QuantizeLinear of `value` and DequantizeLinear of that."""
        parameters = [self.scalar("scale", grid.scale), self.scalar("zero", grid.zero_point)]
        quantize = ir.node("QuantizeLinear", [value, *parameters], name=f"{value.name}.quantize")
        quantize.outputs[0].name = f"{value.name}.uint8"
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *parameters], name=f"{value.name}.dequantize")
        dequantize.outputs[0].name = f"{value.name}.grid"
        self.on_grid[dequantize.outputs[0]] = grid
        return quantize, dequantize

    def scalar(self, what: str, number: np.generic) -> Any:
        key = what, float(number)
        if key not in self.scalars:
            self.scalars[key] = add_initializer(self.model, f"int8.{what}.{len(self.scalars)}", np.array(number))
        return self.scalars[key]

    def weights(self, node: Any) -> None:
        """Weights and bias of a layer become integers behind a DequantizeLinear."""
        value, scale = node.inputs[1], self.on_grid[node.inputs[0]].scale
        axis = 1 if node.op_type == "Gemm" and not _attribute(node, "transB", 0) else 0
        weights, bias = np.moveaxis(_content(value), axis, 0), constant(_bias(node))
        scales, masked = weight_scales(weights, bias, scale), is_masked_conv(node)
        key = value.name, scales.tobytes(), masked
        if key not in self.constants:
            integers = np.moveaxis(integer_weights(weights, scales), 0, axis)
            zeros = [] if masked else [np.zeros(len(scales), np.int8)]
            self.constants[key] = self.dequantized(node, value.name, [integers, scales, *zeros], axis)
        node.replace_input_with(1, self.constants[key])
        if bias is not None:
            name, scales = _bias(node).name, scale * scales
            whole = integer_bias(bias, scales)
            if masked:
                set_constant(self.model, node, 3, whole.astype(np.float32) * scales, f"{name}.grid")
            else:
                node.replace_input_with(2, self.dequantized(node, name, [whole, scales], 0))

    def dequantized(self, node: Any, name: str, content: list[NDArray], axis: int) -> Any:
        """DequantizeLinear of constants: integers, scales and, for weights, zero points; DequantizeWeights for a masked convolution."""
        kinds = (f"int{content[0].itemsize * 8}", "scale", "zero")
        inputs = [add_initializer(self.model, f"{name}.{kind}", array) for kind, array in zip(kinds, content, strict=False)]
        name = f"{inputs[0].name}.dequantize"
        if is_masked_conv(node):
            dequantize = ir.node(DEQUANTIZE_WEIGHTS, inputs, domain=DOMAIN, name=name)
        else:
            dequantize = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=name)
        dequantize.outputs[0].name = f"{inputs[0].name}.grid"
        self.model.graph.insert_before(node, dequantize)
        return dequantize.outputs[0]


def _attribute(node: Any, name: str, default: float) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _content(value: Any) -> NDArray:
    content = constant(value)
    assert content is not None, value.name
    return content


def _is_layer(node: Any) -> bool:
    """A convolution, masked or not, or linear layer with constant float32 weights (and bias) of plain form."""
    masked = is_masked_conv(node)
    if not masked and (node.domain or node.op_type not in LAYERS):
        return False
    weights, bias = constant(node.inputs[1]), _bias(node)
    if weights is None or weights.dtype != np.float32 or (bias is not None and constant(bias) is None):
        return False
    if masked or node.op_type == "Conv":
        return True
    plain = [_attribute(node, name, default) == default for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))]
    return all(plain) and (bias is None or bias.shape == (weights.shape[1 - _attribute(node, "transB", 0)],))


def _bias(node: Any) -> Any:
    index = 3 if is_masked_conv(node) else 2
    return node.inputs[index] if len(node.inputs) > index else None


def _on_grids(node: Any) -> bool:
    """Whether a node has a form in integers."""
    if _is_layer(node):
        return True
    if node.domain or node.op_type not in (*MEASURED, *KEEPING) or len(node.outputs) != 1:
        return False
    if node.outputs[0].dtype not in (None, ir.DataType.FLOAT):  # sizes are joined and added, too
        return False
    if node.op_type == "Pad":
        filler = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
        return filler is not None and not filler.any()
    return node.op_type != "Add" or len(_activations(node)) == 2


def _activations(node: Any) -> list[Any]:
    """The inputs that are no constants."""
    count = None if node.op_type in ("Add", "Concat") else 1
    return [value for value in node.inputs[:count] if value is not None and constant(value) is None]


def _absorbed(node: Any) -> Any:
    """The ReLU behind a node, or the Clip from zero up, that QuantizeLinear makes superfluous; None where there is none."""
    if node.op_type not in (*LAYERS, "Add") and not is_masked_conv(node):
        return None
    consumer = sole_consumer(node.outputs[0])
    if consumer is None or consumer.domain or consumer.op_type not in ("Relu", "Clip"):
        return None
    if consumer.op_type == "Clip":
        low = constant(consumer.inputs[1]) if len(consumer.inputs) > 1 else None
        if low is None or low.any() or consumer.inputs[0] is not node.outputs[0]:
            return None
    return consumer
