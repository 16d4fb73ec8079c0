"""Rules: masks and pruned weights are stored compactly and unpacked in the graph, once, when a session is made.

    drop_full_masks   MaskedConv(X, W, ones, B)   ->  Conv(X, W, B)
    pack_masks        M bool                      ->  UnpackMask(bits)               1 bit an element
    pack_weights      W with zeros                ->  UnpackWeights(values, bits)    4 bytes a nonzero (int8: 1) + 1 bit an element

The bits are those of ops/mask_bits.py. A weight of exactly zero counts as dropped, whoever set it: a weight mask needs no tensor of
its own, and filters zeroed by another method shrink as well.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.ops import mask_bits

from .functions import DOMAIN, UNPACK_MASK, UNPACK_WEIGHTS
from .graph import Refusal, add_initializer, constant, is_masked_conv, masked_convs

SMALLEST_SAVING = 512
"""Bytes below which packing a tensor is not worth its node (about 200 bytes) and two initializers."""


def unpack_weights(values: NDArray, bits: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Dense weights from their nonzero values (row-major, float32 or int8) and bit mask: UnpackWeights in numpy."""
    weights = np.zeros(shape, values.dtype)
    weights[mask_bits.unpack(bits, shape)] = values
    return weights


def drop_full_masks(model: Any) -> list[Refusal]:
    """A masked convolution that drops no block is a Conv."""
    from onnxscript import ir

    for node in masked_convs(model):
        mask = constant(node.inputs[2])
        if mask is None or not mask.all():
            continue
        x, weights, _, *bias = node.inputs
        attributes = [attribute for name, attribute in node.attributes.items() if name not in ("channels", "taps")]
        kernel = [int(size) for size in constant(weights).shape[2:]]  # type: ignore[union-attr]
        dense = ir.Node("", "Conv", [x, weights, *bias], [*attributes, ir.AttrInt64s("kernel_shape", kernel)], name=node.name)
        _replace(model, node, dense)
    return []


def pack_masks(model: Any) -> list[Refusal]:
    """Store the masks of the masked convolutions bit-packed."""
    refusals = []
    for node in masked_convs(model):
        value, mask = node.inputs[2], constant(node.inputs[2])
        if mask is not None:
            bits = add_initializer(model, f"{value.name}.bits", mask_bits.pack(mask))
            _unpack_instead(model, value, UNPACK_MASK, [bits])
        elif value.producer() is None or value.producer().op_type != UNPACK_MASK:  # layers may share a mask: packed already
            refusals.append(Refusal(rule="pack_masks", node=node.name, reason="its mask is not constant"))
    return refusals


def pack_weights(model: Any, *, smallest_saving: int = SMALLEST_SAVING) -> list[Refusal]:
    """Store weights, all that is of float32 or int8 and no vector (biases, zero points), compactly where their zeros make them smaller; the
    refusals name convolution weights left dense."""
    refusals = []
    for value in list(model.graph.initializers.values()):
        weights = constant(value)
        if weights is None or weights.ndim < 2 or weights.dtype not in (np.float32, np.int8) or value.is_graph_output():
            continue
        # Minus zero would come back as plus zero, which no convolution can tell apart.
        kept = weights != 0
        saving = weights.itemsize * (weights.size - int(kept.sum())) - (weights.size + 7) // 8
        if saving >= smallest_saving:
            packed = [
                add_initializer(model, f"{value.name}.values", weights[kept]),
                add_initializer(model, f"{value.name}.bits", mask_bits.pack(kept)),
            ]
            _unpack_instead(model, value, UNPACK_WEIGHTS, packed)
        elif any(is_masked_conv(node) and index == 1 for node, index in value.uses()) and not kept.all():
            reason = f"{weights.size - int(kept.sum())} zeros of {weights.size} weights would save no {smallest_saving} bytes"
            refusals.append(Refusal(rule="pack_weights", node=value.name, reason=reason))
    return refusals


def _unpack_instead(model: Any, value: Any, op_type: str, packed: list[Any]) -> None:
    """The initializer `value` becomes the output of an unpacking node at the head of the graph, under the same name."""
    from onnxscript import ir

    shape = [int(size) for size in value.shape]
    node = ir.Node(DOMAIN, op_type, packed, [ir.AttrInt64s("shape", shape)], name=f"{value.name}.unpack")
    output = node.outputs[0]
    del model.graph.initializers[value.name]
    output.name, output.shape, output.type = value.name, value.shape, value.type
    ir.convenience.replace_all_uses_with(value, output)
    model.graph.insert_before(model.graph[0], node)


def _replace(model: Any, node: Any, replacement: Any) -> None:
    from onnxscript import ir

    old, new = node.outputs[0], replacement.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    model.graph.insert_before(node, replacement)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
