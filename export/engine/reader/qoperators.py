"""QOperator files as QDQ ones: a node that computes on grids becomes DequantizeLinear, the operator on float32, and QuantizeLinear.

    QLinearConv(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias)
        ->  Q(Conv(DQ(x), DQ(w), DQ(bias)), y_scale, y_zero)                                 bias has the scale x_scale * w_scale

passes/integers.py makes one layer on integers of these again, as it does of QDQ files. A node in another form stays as it is.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MICROSOFT = "com.microsoft"
_MOST_SCALES = 1 << 20
_MOST_SCALE = 1e36
"""Numbers of larger ones would not be finite."""
_UNARY = {
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool",
    "QLinearSigmoid": "Sigmoid",
}
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}
_SAME_NUMBERS = {"Flatten", "Reshape", "Identity"}
"""Their output is on the grid of their first input."""


def as_qdq(model: Any) -> Any:
    """The model, changed."""
    rewriting = _Rewriting(model)
    nodes = [made for node in model.graph.node for made in rewriting.nodes(node)]
    if rewriting.changed:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


class _Rewriting:
    def __init__(self, model: Any) -> None:
        self._graph, self.changed = model.graph, False
        self._own = {(function.domain, function.name) for function in model.functions}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._names = {name for node in model.graph.node for name in (*node.input, *node.output)} | self._tensors.keys()
        self._grids: dict[str, tuple[str, str]] = {}
        """Scale and zero point of what is on a grid."""

    def nodes(self, node: Any) -> list[Any]:
        """What stands for a node."""
        made = None
        if len(node.output) == 1 and (node.domain, node.op_type) not in self._own:
            made = self._made(node, node.op_type, list(node.input))
            self._note(node if made is None else made[-1])
        self.changed |= made is not None
        return [node] if made is None else made

    def _note(self, node: Any) -> None:
        """The grid of the output, of the last node that was made where some were."""
        if node.op_type == "QuantizeLinear" and len(node.input) == 3:
            self._grids[node.output[0]] = (node.input[1], node.input[2])
        elif node.domain == "" and node.op_type in _SAME_NUMBERS and node.input and node.input[0] in self._grids:
            self._grids[node.output[0]] = self._grids[node.input[0]]

    def _made(self, node: Any, kind: str, inputs: list[str]) -> list[Any] | None:
        if node.domain in ("", "ai.onnx"):
            if kind == "QLinearConv" and len(inputs) in (8, 9):
                return self._weighted(node, "Conv", inputs, inputs[8:], (inputs[6], inputs[7]), axis=0)
            if kind == "QLinearMatMul" and len(inputs) == 8:
                return self._weighted(node, "MatMul", inputs, [], (inputs[6], inputs[7]), axis=1)
            if kind == "MaxPool" and len(inputs) == 1 and inputs[0] in self._grids:
                return self._between(node, "MaxPool", [(inputs[0], *self._grids[inputs[0]])], self._grids[inputs[0]])
        if node.domain != _MICROSOFT or self._attribute(node, "channels_last"):
            return None
        if kind in _UNARY and len(inputs) == 5:
            return self._between(node, _UNARY[kind], [(inputs[0], inputs[1], inputs[2])], (inputs[3], inputs[4]))
        if kind in _BINARY and len(inputs) == 8:
            operands = [(inputs[k], inputs[k + 1], inputs[k + 2]) for k in (0, 3)]
            return self._between(node, _BINARY[kind], operands, (inputs[6], inputs[7]))
        if kind == "QLinearConcat" and len(inputs) >= 5 and len(inputs) % 3 == 2:
            operands = [(inputs[k], inputs[k + 1], inputs[k + 2]) for k in range(2, len(inputs), 3)]
            return self._between(node, "Concat", operands, (inputs[0], inputs[1]))
        if kind == "QGemm" and 6 <= len(inputs) <= 9 and not self._attribute(node, "transA"):
            grid = (inputs[7], inputs[8]) if len(inputs) == 9 else None
            return self._weighted(node, "Gemm", inputs, inputs[6:7], grid, axis=0 if self._attribute(node, "transB") else 1)
        return None

    @staticmethod
    def _attribute(node: Any, name: str) -> int:
        return next((int(a.i) for a in node.attribute if a.name == name), 0)

    def _weighted(
        self, node: Any, kind: str, inputs: list[str], bias: list[str], grid: tuple[str, str] | None, axis: int
    ) -> list[Any] | None:  # fmt: skip
        """x and constant weights, each with scale and zero point, and a bias on the grid of the sums."""
        scales = [self._floats(name) for name in (inputs[1], inputs[4])]
        if inputs[3] not in self._tensors or any(found is None or not (found < _MOST_SCALE).all() for found in scales):
            return None
        if any(a.name == "alpha" and a.f != 1 for a in node.attribute):
            return None
        operands: list[tuple[str, str, str]] = [(inputs[0], inputs[1], inputs[2]), (inputs[3], inputs[4], inputs[5])]
        if bias and bias[0]:
            with np.errstate(over="ignore", under="ignore"):
                sums = np.asarray(scales[0].reshape(-1)[:1] * scales[1].reshape(-1), np.float32)  # type: ignore[union-attr]
            if not np.isfinite(sums).all() or not (sums > 0).all():
                return None
            operands.append((bias[0], self._constant(f"{node.output[0]} bias scale", sums), ""))
        return self._between(node, kind, operands, grid, [None, axis, 0])

    def _between(
        self,
        node: Any,
        kind: str,
        operands: list[tuple[str, str, str]],
        grid: tuple[str, str] | None,
        axes: list[int | None] | None = None,
    ) -> list[Any]:
        """The operator on operands (tensor, scale, zero point), and what quantizes it."""
        from onnx import helper

        made = []
        for k, (name, scale, zero) in enumerate(operands):
            axis = axes[k] if axes else None
            inputs, output = [name, scale, zero] if zero else [name, scale], self._name(f"{node.output[0]} from {name}")
            more = {} if axis is None else {"axis": axis}
            made.append(helper.make_node("DequantizeLinear", inputs, [output], **more))
        real = self._name(f"{node.output[0]} in float32") if grid else node.output[0]
        operator = helper.make_node(kind, [each.output[0] for each in made], [real], name=node.name)
        operator.attribute.extend(a for a in node.attribute if a.name not in ("channels_last", "alpha"))
        made.append(operator)
        if grid:
            made.append(helper.make_node("QuantizeLinear", [real, *filter(None, grid)], [node.output[0]]))
        return made

    def _name(self, wanted: str) -> str:
        while wanted in self._names:
            wanted += "'"
        self._names.add(wanted)
        return wanted

    def _constant(self, name: str, content: NDArray) -> str:
        from onnx import numpy_helper

        name = self._name(name)
        self._graph.initializer.append(numpy_helper.from_array(content, name))
        return name

    def _floats(self, name: str) -> NDArray[np.float32] | None:
        """A constant of float32 numbers, None where it is none."""
        from onnx import TensorProto, numpy_helper

        tensor = self._tensors.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT or any(not 0 <= size <= _MOST_SCALES for size in tensor.dims):
            return None
        try:
            content = numpy_helper.to_array(tensor)
        except Exception:  # whatever numpy and protobuf make of damaged content
            return None
        return content if content.size else None
