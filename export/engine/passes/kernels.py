"""The kernels that convolutions can choose from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..ir.conv import Op
from ..ir.network import Conv
from ..ops import filters, linear, plain, positions
from .layouts import LAYOUTS, NCHW, NHWC, Candidate


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A module with supports, estimate and plan (see conv.py); `layouts` that its output can have; x in any layout?"""

    module: Any
    layouts: tuple[str, ...]
    any_input: bool

    @property
    def plan(self) -> Callable[..., Op]:
        """Makes an operation."""
        plan: Callable[..., Op] = self.module.plan
        return plan


CONVOLUTIONS = {
    "filters": Kernel(module=filters, layouts=(NHWC,), any_input=True),
    "positions": Kernel(module=positions, layouts=(NCHW,), any_input=False),
    "linear": Kernel(module=linear, layouts=(NHWC,), any_input=True),
    "plain": Kernel(module=plain, layouts=LAYOUTS, any_input=True),
}


def candidates(layer: Conv) -> tuple[list[Candidate], dict[str, str]]:
    """(what can run the layer with the expected seconds, why the others cannot)."""
    found, refused = [], {}
    kernels = CONVOLUTIONS
    if linear.supports(layer.shape, layer.weights, layer.mask) is None:
        kernels = {"linear": CONVOLUTIONS["linear"]}  # planned at once however large, which the others are not
    for name, kernel in kernels.items():
        reason = kernel.module.supports(layer.shape, layer.weights, layer.mask)
        if reason is not None:
            refused[name] = reason
            continue
        seconds = kernel.module.estimate(layer.shape, layer.weights, layer.mask)
        any_input = kernel.any_input and not (name == "filters" and _is_depthwise(layer))
        found += [Candidate(kernel=name, layout=layout, any_input=any_input, seconds=seconds) for layout in kernel.layouts]
    return found, refused


def _is_depthwise(layer: Conv) -> bool:
    """Then the kernel "filters" has the activations in the lanes, too: it reads NHWC alone."""
    return layer.shape.groups == layer.shape.channels == layer.shape.filters > 1
