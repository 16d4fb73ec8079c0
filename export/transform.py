"""The order of the rules, and what the graph looks like between them.

trace -> simplify -> layer_facts -> pack (functions, compact tensors) or inline (standard operators only) -> serialised by exporter.py
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fineprune.common.errors import RunError
from fineprune.compressor.masks import KINDS
from fineprune.ops.multiply_adds import multiply_adds

from .fold_batchnorm import fold_batchnorm, fold_bias
from .functions import DOMAIN, MASKED, POINTWISE, VERSION, functions
from .graph import Refusal, add_initializer, constant, is_conv, is_masked_conv, masked_convs, remove_unused
from .pack import drop_full_masks, pack_masks, pack_weights
from .pads import keep_pads
from .unread import DENSE, drop_unread

Rule = Callable[[Any], list[Refusal]]


def choose_bodies(model: Any) -> list[Refusal]:
    """1x1 kernels with stride 1 and no padding multiply their input by the mask; the others gather the taps that some filter uses."""
    from onnxscript import ir

    for node in masked_convs(model):
        if node.op_type != MASKED:
            continue
        strides, pads = (node.attributes[name].as_ints() for name in ("strides", "pads"))
        if [*node.inputs[1].shape[2:], *strides] == [1, 1, 1, 1] and not any(pads):
            node.op_type = POINTWISE
            del node.attributes["taps"]
        else:
            node.attributes["taps"] = ir.AttrInt64("taps", _most_taps(node))
    return []


SIMPLIFY: tuple[Rule, ...] = (fold_bias, fold_batchnorm, drop_unread, drop_full_masks, choose_bodies, keep_pads)
PACK: tuple[Rule, ...] = (pack_masks, pack_weights)


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """One convolution of an exported file: kept fractions (1 where nothing is dropped) and multiply-adds a sample."""

    name: str
    op: str
    kept: Mapping[str, float]
    """By kind of mask."""
    macs_dense: int
    macs: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, as files have them: NAME_kept for every kind of mask."""
        kept = {f"{name}_kept": fraction for name, fraction in self.kept.items()}
        return {"name": self.name, "op": self.op, **kept, "macs_dense": self.macs_dense, "macs": self.macs}


def simplify(model: Any) -> list[Refusal]:
    """Fold biases and BatchNormalization, turn full masks into plain convolutions, name convolutions after their weights."""
    for node in masked_convs(model):
        mask = node.inputs[2]
        if mask.shape is None or len(mask.shape) != 3:
            raise RunError(
                f"the mask of {node.name} is not of shape [C,oh,ow]; masks per sample are for calibration, they cannot be exported"
            )
    refusals = _apply(SIMPLIFY, model)
    name_after_weights([node for node in model.graph if is_conv(node) or is_masked_conv(node)])
    return refusals


def name_after_weights(nodes: Iterable[Any]) -> None:
    """Layers get the names of modules; those that share weights get a number, since ONNX Runtime refuses a name that is there twice."""
    taken: dict[str, int] = {}
    for node in nodes:
        if node.inputs[1].is_initializer():
            name = node.inputs[1].name.removesuffix(".weight").removesuffix(".fixed_weight")
            taken[name] = taken.get(name, 0) + 1
            node.name = name if taken[name] == 1 else f"{name}.{taken[name]}"


def pack(model: Any, *, opset: int) -> list[Refusal]:
    """Store masks and weights compactly and add the functions that the graph calls."""
    refusals = _apply(PACK, model)
    add_functions(model, opset=opset)
    return refusals


def inline(model: Any, *, opset: int) -> None:
    """Replace the calls of our functions by their bodies and fold what is constant: standard operators only."""
    from onnxscript import ir

    from .trace import quiet

    add_functions(model, opset=opset)
    ir.passes.common.InlinePass()(model)
    with quiet():  # it says what it leaves
        _fold(model)
        _fold_top_k(model)
        _fold(model)
    ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.opset_imports.pop(DOMAIN, None)
    remove_unused(model)


def _fold(model: Any) -> None:
    from onnxscript import optimizer

    unlimited = int(np.iinfo(np.int64).max)
    # By default the folder spares ConstantOfShape, from which the one-hot kernels are built. Integer weights stay integers.
    limits = {"input_size_limit": unlimited, "output_size_limit": unlimited}
    optimizer.fold_constants(model, **limits, should_fold=lambda node: node.op_type != "DequantizeLinear")


def _fold_top_k(model: Any) -> None:
    """The choice of taps: a node of two outputs, which the folder leaves. Of equal elements TopK takes the first ones."""
    from onnxscript import ir

    for node in [node for node in model.graph if node.domain == "" and node.op_type == "TopK"]:
        values, count = (constant(value) for value in node.inputs)
        if values is None or count is None:
            continue
        axis = node.attributes["axis"].as_int()
        indices = np.argsort(-values, axis, kind="stable").take(range(int(count.item())), axis)
        for output, content in zip(node.outputs, (np.take_along_axis(values, indices, axis), indices), strict=True):
            ir.convenience.replace_all_uses_with(output, add_initializer(model, f"{output.name}.folded", content))
        model.graph.remove(node, safe=True)


def add_functions(model: Any, *, opset: int) -> None:
    """Add the bodies of the functions called in the main graph, and their operator set."""
    from onnxscript import ir

    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for proto in functions(used, opset):
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
    if used:
        model.opset_imports[DOMAIN] = VERSION
    else:
        model.opset_imports.pop(DOMAIN, None)


def layer_facts(model: Any) -> list[LayerFacts]:
    """Kept fractions and exact multiply-adds of every convolution with constant weights; call it before packing."""
    facts = []
    for node in model.graph:
        weights = constant(node.inputs[1]) if is_conv(node) or is_masked_conv(node) else None
        shape = node.outputs[0].shape
        if weights is None or weights.ndim != 4 or shape is None or not all(isinstance(size, int) for size in shape[2:]):
            continue
        group = node.attributes["group"].as_int() if "group" in node.attributes else 1
        mask = constant(node.inputs[2]) if is_masked_conv(node) else None
        positions = int(np.prod(shape[2:]))
        dense, groups = node.meta.get(DENSE, (weights.shape, group))
        blocks = 1.0 if mask is None else float(mask.mean())
        facts.append(
            LayerFacts(
                name=node.name,
                op=node.op_type,
                kept={kind.name: kind.kept_in_file(blocks, float(np.count_nonzero(weights) / np.prod(dense))) for kind in KINDS},
                macs_dense=multiply_adds(dense, positions, groups),
                macs=multiply_adds(weights.shape, positions, group, blocks=mask, weights=weights),
            )
        )
    return facts


def _most_taps(node: Any) -> int:
    """The most taps that the filters use of a channel of which any block is kept (at least 1); all where the weights are computed."""
    weights, mask = constant(node.inputs[1]), constant(node.inputs[2])
    filters, per_group, *kernel = (int(size) for size in node.inputs[1].shape)
    taps = int(np.prod(kernel))
    if weights is None:
        return taps
    group = node.attributes["group"].as_int()
    used = np.any((weights != 0).reshape(group, filters // group, per_group, taps), axis=1).reshape(-1, taps)
    if mask is not None:
        used &= np.any(mask, axis=(1, 2), keepdims=True)[:, 0]
    return max(1, int(used.sum(1).max()))


def _apply(rules: tuple[Rule, ...], model: Any) -> list[Refusal]:
    refusals = []
    for rule in rules:
        refusals += rule(model)
        remove_unused(model)
    return refusals
