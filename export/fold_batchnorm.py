"""Rules: what follows a convolution and is affine per filter moves into its weights and bias.

Y = conv(X, W) + B, masked or not, is linear in (W, B) for each filter f, since the mask multiplies blocks of X only:

    fold_bias        Y + b[f]                                ->  B' = B + b
    fold_batchnorm   gamma * (Y - mean) / sqrt(var + eps) + beta, s = gamma / sqrt(var + eps)
                                                             ->  W' = s * W,  B' = s * (B - mean) + beta

Zeros of W stay zeros, so the FWP mask survives. Computed in float64, stored in the weights' type.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Refusal, bypass, constant, is_conv, is_masked_conv, masked_convs, set_constant, sole_consumer


def fold_bias(model: Any) -> list[Refusal]:
    """Move `MaskedConv + constant[1,F,1,1]` into the bias input; without one, give the node a bias of zeros.

    Afterwards every masked convolution has four inputs. (torch's operator has no bias; a standard Conv has it from the start.)
    """
    for node in masked_convs(model):
        filters = int(node.inputs[1].shape[0])
        bias = np.zeros(filters, np.float32)
        addition = sole_consumer(node.outputs[0])
        if addition is not None and addition.domain == "" and addition.op_type == "Add":
            added = _per_filter(addition, node.outputs[0], filters)
            if added is not None:
                bias = added
                bypass(model, addition, node.outputs[0])
        set_constant(model, node, 3, bias, _bias_name(node))
    return []


def fold_batchnorm(model: Any) -> list[Refusal]:
    """Fold each BatchNormalization into the Conv or MaskedConv before it; the refusals say which stay and why."""
    refusals = []
    for norm in [node for node in model.graph if node.domain == "" and node.op_type == "BatchNormalization"]:
        reason = _fold(model, norm)
        if reason:
            refusals.append(Refusal(rule="fold_batchnorm", node=norm.name, reason=reason))
    return refusals


def _fold(model: Any, norm: Any) -> str:
    """Fold one node; the reason where it stays, else an empty text."""
    conv: Any = norm.inputs[0].producer()
    if not (is_conv(conv) or is_masked_conv(conv)):
        return "its input is not the output of a convolution"
    if sole_consumer(conv.outputs[0]) is None:
        return f"the output of {conv.name} has other consumers"
    if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return "its running statistics are outputs"
    bias_index = 3 if is_masked_conv(conv) else 2
    weights, statistics = constant(conv.inputs[1]), [constant(value) for value in norm.inputs[1:]]
    bias_value = conv.inputs[bias_index] if len(conv.inputs) > bias_index else None
    bias = constant(bias_value) if bias_value is not None else np.zeros(1)
    if weights is None or bias is None or any(array is None for array in statistics):
        return "weights, bias or statistics are not constant"
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in statistics)
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    scale = gamma / np.sqrt(variance + epsilon)
    name = _bias_name(conv)
    scaled = weights * scale.reshape(-1, *[1] * (weights.ndim - 1))
    set_constant(model, conv, 1, scaled.astype(weights.dtype), conv.inputs[1].name)
    set_constant(model, conv, bias_index, (scale * (bias - mean) + beta).astype(weights.dtype), name)
    bypass(model, norm, conv.outputs[0])
    return ""


def _per_filter(addition: Any, summand: Any, filters: int) -> NDArray | None:
    """The other operand of `addition` as [F], if it is constant and the same at every position."""
    other = addition.inputs[1] if addition.inputs[0] is summand else addition.inputs[0]
    content = constant(other)
    if content is None or content.shape[-3:] != (filters, 1, 1) or content.size != filters:
        return None
    return content.reshape(filters)


def _bias_name(conv: Any) -> str:
    name = conv.inputs[1].name
    return f"{name.removesuffix('.weight')}.bias"
