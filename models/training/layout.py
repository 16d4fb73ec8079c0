"""Channels-last (NHWC) memory: it makes convolutions faster, and steps aside for networks whose forward reads memory in its own order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.inputs import Inputs, Structured, answer, floats, laid_out
from fineprune.common.progress import Progress

from .device import seed_generators
from .frozen import frozen_modules, start_training
from .interfaces import DataLike

_SAME = 1e-2
"""Share of the largest output by which those of the two formats may differ: rounding is far below, numbers in another order far above."""


def choose_nhwc(models: Sequence[nn.Module], data: DataLike, device: torch.device, asked: bool, progress: Progress) -> bool:
    """Whether training may hold images and weights as NHWC: `asked`, on a device that gains by it, and no network minds.

    Each network, put on `device`, is tried on two images of noise, or samples of another structure. It is as before afterwards; the
    caller's random state is not kept.
    """
    if not asked or device.type not in ("cpu", "cuda"):
        return False
    shape = tuple(getattr(data, "input_shape", ()))
    few = torch.zeros(1, *shape) if shape else next(iter(data.train.batches(2))).images
    images = few if isinstance(few, Structured) else torch.randn(2, *few.shape[1:], generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    if all(suits_nhwc(model.to(device), images) for model in models):
        return True
    progress.log("the network's forward relies on the order of numbers in memory (view, as_strided): trained as NCHW, which is slower")
    return False


def suits_nhwc(model: nn.Module, images: Inputs) -> bool:
    """Whether `model` computes the same from NHWC memory, forward and backward. So it is said, too, where it fails in either format:
    the first step tells why.
    """
    if isinstance(images, Tensor) and images.dim() != 4:
        return True
    frozen = frozen_modules(model)
    with left_as_it_is(model):
        plain, fast = (_outputs(model, images, nhwc) for nhwc in (False, True))
        if plain is None:
            return True
        if fast is None or not all(map(_alike, plain, fast)):
            return False
        return trains(model, images, frozen, True) or not trains(model, images, frozen, False)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and not bool((other - one).abs().max() > _SAME * one.abs().max())


def _outputs(model: nn.Module, images: Inputs, nhwc: bool) -> list[Tensor] | None:
    """In eval mode; None where the network fails or gives no tensor."""
    with memory_format(model, images.device, nhwc) as wanted, torch.no_grad():
        seed_generators(images.device, 0)
        model.eval()
        try:
            outputs = floats(answer(model, laid_out(images, wanted).clone()))
        except Exception:  # the network's own code may raise anything
            return None
    return [output.float() for output in outputs] or None


def trains(model: nn.Module, images: Inputs, frozen: list[nn.Module], nhwc: bool) -> bool:
    """Whether the forward and the backward pass of a training step go through."""
    with memory_format(model, images.device, nhwc) as wanted:
        seed_generators(images.device, 0)
        start_training(model, frozen)
        try:
            outputs = floats(answer(model, laid_out(images, wanted).clone()))
            torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
        except Exception:  # as above
            return False
    return True


@contextmanager
def left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Buffers (BatchNorm's statistics), gradients and training flags come back after the block."""
    buffers = [(module, name, buffer, buffer.clone()) for module in model.modules() for name, buffer in _buffers(module)]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    flags = [(module, module.training) for module in model.modules()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)  # a module may have put another tensor there


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in module._buffers.items() if buffer is not None]


@contextmanager
def memory_format(model: nn.Module, device: torch.device, nhwc: bool) -> Iterator[torch.memory_format]:
    """Hold 4-D parameters as NHWC inside the block, where that was chosen, and as NCHW again after it.

    On the CPU a convolution whose backward pass torch gets wrong for NHWC gets NCHW all the same, from whatever layer is before it.
    """
    wanted = torch.channels_last if nhwc else torch.contiguous_format
    lay_out(model, wanted)
    unsafe = [module for module in model.modules() if device.type == "cpu" and _overruns(module)]
    hooks = [module.register_forward_pre_hook(_to_nchw) for module in unsafe]
    try:
        yield wanted
    finally:
        for hook in hooks:
            hook.remove()
        lay_out(model, torch.contiguous_format)


def lay_out(model: nn.Module, wanted: torch.memory_format) -> None:
    """Hold 4-D parameters in the memory order `wanted`."""
    for parameter in model.parameters():
        if parameter.dim() == 4:  # Module.to(memory_format=...) also tries 5-D ones, and fails
            laid_out = parameter.data.contiguous(memory_format=wanted)
            # 1x1 kernels are of both formats; torch reads their strides, and these say NCHW.
            parameter.data = laid_out.flatten().view(laid_out.shape) if laid_out.shape[2:] == (1, 1) else laid_out


_CHANNEL_BLOCK = 16


def _overruns(module: nn.Module) -> bool:
    """Whether torch's gradient in the weights of this layer, for NHWC, writes past its buffer: crashes or wrong numbers.

    Strided 1x1 convolutions of fewer channels than a vector has lanes, on one thread too where the images are large
    (https://github.com/uxlfoundation/oneDNN/issues/6035, seen in torch 2.13 and 2.14).
    """
    if not isinstance(module, nn.Conv2d) or module.groups > 1:
        return False
    return module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < _CHANNEL_BLOCK


def _to_nchw(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)
