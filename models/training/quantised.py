"""Quantisation-aware training: the last epochs compute on the grids of an export in int8, so that the weights come to suit them.

    y = conv(fq_x(x), fq_w(w M)) + b            of convolutions and linear layers; M: what weight masks keep
    fq(v) = s (clip(round(v / s) + z, l, h) - z)         d fq / d v = 1 where l <= v / s + z <= h, else 0

Scales and zero points by ops/grids.py and ops/ranges.py, as the export chooses them: fq_w anew in each step, fq_x at the start of each
of these epochs, on training images, by the network without grids. Folding BatchNorm multiplies a filter by a constant, which its scale
follows: the integers of w are those of the file, give or take a number halfway between two. BatchNorm keeps learning, for the averages
that it then keeps are those of the network on grids, and the biases folded from them make up for what rounding shifts.

In float32 stay: biases; results that no layer reads directly (those that are added up or averaged), which the export puts on grids, too.
(Jacob et al. 2018; straight-through gradients: Bengio et al. 2013.)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fineprune.common.errors import UsageError
from fineprune.ops.grids import LARGEST_ACTIVATION, LARGEST_WEIGHT, Grid, weight_scales
from fineprune.ops.ranges import RANGES, RANGES_DEFAULT, histograms

from .device import derive_seed
from .evaluate import eval_mode
from .interfaces import Masked
from .loop import Task
from .passes import forward

IMAGES = 256
"""Training images that ranges are measured on, in whole batches."""
_DIMENSIONS = {nn.Conv2d: 4, nn.Linear: 2}
"""Of what a layer reads where it can become one of integers."""


class _Fake(torch.autograd.Function):
    """fq(v) divides, as the export does; torch.fake_quantize_... multiply by 1 / s, which at times rounds to the other number."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = v / scale
        ctx.save_for_backward((steps >= low) & (steps <= high))
        return steps.round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0] * ctx.saved_tensors[0], None, None, None


def fake_activations(x: Tensor, grid: Grid) -> Tensor:
    """x[...] on the grid."""
    zero = int(grid.zero_point)
    return _Fake.apply(x.float(), torch.tensor(grid.scale, device=x.device), -zero, LARGEST_ACTIVATION - zero)


def fake_weights(weight: Tensor) -> Tensor:
    """weight[F,...] on the grids of its filters; zeros stay zeros."""
    scales = torch.from_numpy(weight_scales(weight.detach().float().cpu().numpy(), None, np.float32(1))).to(weight.device)
    return _Fake.apply(weight.float(), scales.reshape(-1, *[1] * (weight.dim() - 1)), -LARGEST_WEIGHT, LARGEST_WEIGHT)


class Quantised:
    """The layers of a network that trains, which compute on grids from the first of the last `qat_epochs` on."""

    def __init__(self, task: Task) -> None:
        """UsageError for a network without such layers."""
        self.task = task
        self.layers = {name: layer for name, layer in task.model.named_modules() if _dimensions(layer) and _has_own_weight(layer)}
        """Those whose weight is a parameter of their own."""
        self.grids: dict[str, Grid] | None = None
        """Of what each layer reads; None before these epochs."""
        self._handles: list[RemovableHandle] = []
        if not self.layers:
            raise UsageError("qat_epochs: the network has no convolution or linear layer that int8 could take; leave it out")

    @property
    def begun(self) -> bool:
        """Whether the layers compute on grids."""
        return self.grids is not None

    def begin(self, epoch: int) -> None:
        """Before the first step of `epoch` (from 0): measure the ranges, where it is one of the last."""
        if epoch >= self.task.config.epochs - self.task.config.qat_epochs:
            self.close()
            self._open(self.task.group.on_first(lambda: self._measured(epoch)))

    def close(self) -> None:
        """The layers compute as they did before."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.grids = [], None

    def state_dict(self) -> dict[str, list[float]] | None:
        """Scale and zero point by layer."""
        return None if self.grids is None else {name: [float(grid.scale), int(grid.zero_point)] for name, grid in self.grids.items()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on with the grids of `state`."""
        self.close()
        if state is not None:
            self._open({name: Grid(scale=np.float32(scale), zero_point=np.uint8(zero)) for name, (scale, zero) in state.items()})

    def _open(self, grids: dict[str, Grid]) -> None:
        self.grids = grids
        for name, grid in grids.items():
            self._handles.append(self.layers[name].register_forward_pre_hook(_entered(grid), with_kwargs=True))
            self._handles.append(self.layers[name].register_forward_hook(_left, always_call=True))

    def _measured(self, epoch: int) -> dict[str, Grid]:
        """Of what the layers read of the first images of an order of their own, none of them augmented."""
        config, model, device = self.task.config, self.task.model, self.task.device
        read: dict[str, list[NDArray[np.float32]]] = {}

        def reading(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = _input(args, kwargs)
                if x.dim() == _dimensions(layer):
                    read.setdefault(name, []).append(x.float().cpu().numpy().ravel())

            return hook

        def once(_: str) -> Iterator[dict[str, NDArray[np.float32]]]:
            order = torch.Generator().manual_seed(derive_seed(config.seed, "grids", epoch))
            for batch in islice(self.task.data.train.batches(config.batch_size, generator=order), -(-IMAGES // config.batch_size)):
                forward(model, batch.images.to(device, copy=True))
                yield {name: np.concatenate(tensors) for name, tensors in read.items()}
                read.clear()

        handles = [layer.register_forward_pre_hook(reading(name), with_kwargs=True) for name, layer in self.layers.items()]
        try:
            with eval_mode(model), torch.inference_mode():
                found = histograms(once)
        finally:
            for handle in handles:
                handle.remove()
        return {name: Grid.of(*RANGES[RANGES_DEFAULT](histogram)) for name, histogram in found.items()}


@contextmanager
def quantised(task: Task) -> Iterator[Quantised | None]:
    """The layers of the task's model inside the block; None where the config asks for no epochs on grids."""
    if not task.config.qat_epochs:
        yield None
        return
    layers = Quantised(task)
    try:
        yield layers
    finally:
        layers.close()


def _dimensions(layer: nn.Module) -> int:
    """0 for other layers than those of integers."""
    return next((dimensions for kind, dimensions in _DIMENSIONS.items() if isinstance(layer, kind)), 0)


def _has_own_weight(layer: nn.Module) -> bool:
    return "weight" in layer._parameters and not getattr(layer, "computed", False)


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else kwargs["input"]
    return x


def _entered(grid: Grid) -> Callable[..., Any]:
    """What a layer does first: it reads numbers of the grid, and its weight is, until `_left`, one on grids instead of the parameter."""

    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        vars(layer)["weight"] = fake_weights(layer.masked_weight() if isinstance(layer, Masked) else layer.weight)
        x = fake_activations(_input(args, kwargs), grid)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})

    return hook


def _left(layer: nn.Module, *_: Any) -> None:
    vars(layer).pop("weight", None)
