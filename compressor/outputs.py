"""Which convolutions make a network's outputs: classifiers that are convolutions, whose filters are classes.

Such a layer is one from whose output a path of the computation leads to the network's outputs on which no other layer has weights
(only pooling, activations, normalisation, reshaping, sums): found by walking back from the outputs of one forward pass.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fineprune.calibrate.convolutions import evaluating
from fineprune.common.inputs import Shape, answer, tensors, tracked, zeros

_WEIGHTED = re.compile(r"^(?!Upsample).*(conv|mm|mv|dot|linear|dist|attention|rnn|lstm|gru)", re.IGNORECASE)
"""Names of products in a graph of derivatives."""


def output_layers(model: nn.Module, input_shape: Shape, names: Sequence[str]) -> frozenset[str]:
    """Those of the convolutions `names` that make the outputs; empty where the network computes without derivatives."""
    made: dict[Any, str] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.grad_fn is not None:
                made[output.grad_fn] = name

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        with evaluating(model), torch.enable_grad():
            outputs = answer(model, tracked(zeros(input_shape, model)))
    except RuntimeError:  # no derivative of what it computes
        return frozenset()
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(_reached([output.grad_fn for output in tensors(outputs)], made))


def _reached(ends: list[Any], made: dict[Any, str]) -> set[str]:
    found, waiting, seen = set(), ends, set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            found.add(made[node])
        elif not isinstance(node, torch.autograd.function.BackwardCFunction) and not _WEIGHTED.match(node.name()):
            waiting += [before for before, _ in node.next_functions]
    return found
