"""Which order in memory the answers of masked convolutions have. Channels-last (NHWC) is the fast one, and steps aside for networks whose
forward reads memory in its own order (x.view(n, -1), as_strided): there the layers answer as NCHW.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.inputs import Shape, answer, floats, noise

from .convolutions import evaluating
from .steadiness import difference

_SAME = 1e-3
"""Share of the largest output by which those of the two orders may differ: rounding is far below, numbers in another order far above."""


def wants_nchw(model: nn.Module, layers: Iterable[nn.Module], input_shape: Shape) -> bool:
    """Whether the forward of `model` fails, or computes something else, where `layers` answer as NHWC.

    It is tried on one sample of `input_shape`, noise for (C,H,W); no is the answer, too, where it fails anyway.
    """
    layers = list(layers)
    if not layers:
        return False
    plain, nhwc = (_outputs(model, layers, input_shape, order) for order in (torch.contiguous_format, torch.channels_last))
    if plain is None or nhwc is None:
        return plain is not None
    return difference(plain, nhwc) > _SAME


def answer_as_nchw(layers: Iterable[nn.Module]) -> list[Any]:
    """From now on; handles whose `remove` ends it."""
    return _answering(layers, torch.contiguous_format)


@contextmanager
def answering_as_nchw(layers: Iterable[nn.Module]) -> Iterator[None]:
    """For the length of a with-block."""
    handles = answer_as_nchw(layers)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outputs(model: nn.Module, layers: list[nn.Module], input_shape: Shape, order: torch.memory_format) -> list[Tensor] | None:
    """Of the network, its `layers` answering in `order`; None where it fails or gives no tensor."""
    handles = _answering(layers, order)
    try:
        x = noise(input_shape, model)
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            outputs = floats(answer(model, x))
    except Exception:  # the network's own code may raise anything; whoever runs it next reports it
        return None
    finally:
        for handle in handles:
            handle.remove()
    return outputs or None


def _answering(layers: Iterable[nn.Module], order: torch.memory_format) -> list[Any]:
    return [layer.register_forward_hook(partial(_in_order, order), prepend=True) for layer in layers]


def _in_order(order: torch.memory_format, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.contiguous(memory_format=order) if output.dim() == 4 else output
