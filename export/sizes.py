"""Files that take images of any height and width: for networks whose masks drop weights alone.

A mask of blocks belongs to positions of one size; a mask of weights to none.
"""

import re
from typing import Any

import torch
from torch import nn

from fineprune.common.errors import RunError, UsageError, said_by
from fineprune.common.inputs import Inputs, Shape, Structured, answer, written
from fineprune.compressor.layers import MaskedLayer

from .flat import first

IMAGE_DIMS = 4
"""Of images: [batch, channels, height, width]."""


def check_any_size(model: nn.Module, shape: Shape) -> None:
    """UsageError where a layer of `model` has a mask of blocks, RunError where the network itself takes no images of another size."""
    blocked = [name for name, layer in model.named_modules() if isinstance(layer, MaskedLayer) and layer.block_mask is not None]
    if blocked:
        raise UsageError(
            f"masks of blocks belong to images of one size, and {blocked[0]} has one: export without --dynamic-size (in Python: "
            "dynamic_size), or compress with --ffp 0, which drops weights alone"
        )
    larger = of_another_size(shape)
    try:
        with torch.no_grad():
            answer(model, larger)
    except Exception as error:  # the network's own code may raise anything
        raise one_size(type(model).__name__, f"{written(larger)} end in: {said_by(error)}") from error


def one_size(network: str, why: str) -> RunError:
    """The error for a network of images of one size."""
    return RunError(f"{network} is made for images of one size ({why}); export it without --dynamic-size (dynamic_size)")


def name_sizes(graph: Any) -> None:
    """`height` and `width` in place of the tracer's names of symbols, with a number where several inputs have sizes of their own."""
    from onnxscript import ir

    names: dict[str, str] = {}
    for value in graph.graph.inputs:
        for place, name in zip((2, 3), ("height", "width"), strict=True):
            if len(value.shape) == IMAGE_DIMS and not isinstance(value.shape[place], int):
                taken = sum(one.startswith(name) for one in names.values())
                names.setdefault(str(value.shape[place].value), name if not taken else f"{name}_{taken + 1}")
    if not names:
        return
    symbol = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    values = [*graph.graph.inputs, *(output for node in graph.graph.all_nodes() for output in node.outputs)]
    for value in values:
        for place, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[place] = ir.SymbolicDim(symbol.sub(lambda found: names[found[0]], size.value))


def of_another_size(shape: Shape) -> Inputs:
    """Two samples of noise of twice the height and three times the width: sizes that a network of halves and quarters divides as well."""
    random = torch.Generator().manual_seed(0)

    def wider(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() != IMAGE_DIMS:
            return tensor
        samples, channels, height, width = tensor.shape
        return torch.randn(samples, channels, 2 * height, 3 * width, generator=random)

    return first(shape.map(wider), 2) if isinstance(shape, Structured) else wider(torch.empty(2, *shape))
