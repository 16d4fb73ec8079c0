"""A network as a file of ONNX has it: single tensors go in, single tensors come out, and each has a name.

    inputs  -> the tensors of a structure of inputs, in its order          {"image": x, "others": (y, z)} -> image, others.0, others.1
    outputs -> the tensors of what the network returns, in its order       {"out": u, "aux": v}           -> out, aux

A batch is as many rows of every input: a list of images of several sizes is none, and such a network is exported in parts
(`forward=lambda model, images: model.backbone(images)`).
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fineprune.common.errors import UsageError
from fineprune.common.inputs import Inputs, Structured, answer, mapped, named, tensors, told

INPUT, OUTPUT = "input", "logits"
"""Names of an input and an output where there is one."""


class Flat(nn.Module):
    """`network` as a function of tensors alone, called as `sample` is; UsageError where its tensors have no common axis of samples."""

    def __init__(self, network: nn.Module, sample: Structured) -> None:
        super().__init__()
        self.network, self.sample = network, sample
        rows = {tensor.shape[:1] for tensor in tensors(sample.value)}
        if rows != {(len(sample),)}:
            raise UsageError(
                f"the inputs are {told(sample)}: a file takes tensors whose first axis is that of the samples, as many of each; export a "
                "part of the network that is called so, such as forward=lambda model, images: model.backbone(images)"
            )
        self.training = network.training  # of this module alone: the network's stay as they are

    def forward(self, *given: Tensor) -> Any:
        """Each [N,...], in the order of the structure -> a tensor, or a tuple of them."""
        rest = iter(given)
        found = tensors(self.sample.forward(self.network, mapped(self.sample.value, lambda _: next(rest))))
        return found[0] if len(found) == 1 else tuple(found)

    @property
    def inputs(self) -> list[str]:
        """Names of what goes in."""
        return _names(self.sample.value, INPUT)

    def outputs(self) -> list[str]:
        """Names of what comes out; the network is called for them."""
        with torch.no_grad():
            return _names(answer(self.network, first(self.sample, 1).clone()), OUTPUT)

    def rows(self, count: int) -> Structured:
        """So many samples as this network is called on them: those of the sample, from the first again where there are fewer."""
        order = torch.arange(count) % len(self.sample)
        return Structured(tuple(tensor[order] for tensor in tensors(self.sample.value)), count, lambda model, given: model(*given))


def first(inputs: Inputs, count: int) -> Inputs:
    """The first samples of a batch whose tensors all have their axis."""
    if isinstance(inputs, Structured):
        return replace(inputs.map(lambda tensor: tensor[:count]), samples=count)
    return inputs[:count]


def arrays_of(samples: ArrayLike | Inputs) -> tuple[NDArray[Any], ...]:
    """What a file is given for a batch: float32 [N,...] of one tensor, or the tensors of a structure in their own types."""
    if isinstance(samples, Structured):
        return tuple(np.ascontiguousarray(tensor.numpy()) for tensor in tensors(samples.value))
    return (np.ascontiguousarray(np.asarray(samples, np.float32)),)


def _names(values: Any, alone: str) -> list[str]:
    found = [name.replace(".", "_") for name, _ in named(values)]
    if found == [""]:
        return [alone]
    prefixed = [name if not name[:1].isdigit() else f"{alone}_{name}" for name in found]
    return [name if prefixed.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(prefixed)]
