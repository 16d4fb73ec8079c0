"""A convolution that carries its masks: an ordinary nn.Conv2d to optimizers, checkpoints and export.

The masks act in `forward`, so gradients of dropped weights are zero and whatever an optimizer does to those weights
(momentum, weight decay, averaging) never reaches the output.
"""

from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from fineprune.calibrate.convolutions import own_forward
from fineprune.common.errors import UsageError
from fineprune.ops.mask_facts import MASKS
from fineprune.ops.masked_conv import explicit_padding, masked_conv2d


class MaskedConv2d(nn.Conv2d):
    """nn.Conv2d under an FFP mask (bool [C,oh,ow]) and an FWP mask (bool [F,C/groups,kh,kw]); None means nothing is dropped."""

    ffp_mask: Tensor | None
    fwp_mask: Tensor | None

    @classmethod
    def wrap(cls, conv: nn.Conv2d, *, ffp_mask: Tensor | None = None, fwp_mask: Tensor | None = None) -> "MaskedConv2d":
        """A layer beside `conv` with its parameters (not copies), hooks and attributes. UsageError as in `mask`."""
        layer = type(conv).__new__(type(conv))
        vars(layer).update({key: copy(value) if isinstance(value, dict | set) else value for key, value in vars(conv).items()})
        return mask(layer, ffp_mask=ffp_mask, fwp_mask=fwp_mask)

    def masked_weight(self) -> Tensor:
        """weight[F,C/groups,kh,kw] with the dropped taps at exactly zero."""
        return self.weight if self.fwp_mask is None else self.weight * self.fwp_mask

    def forward(self, input: Tensor) -> Tensor:
        """x[N,C,H,W] -> y[N,F,oh,ow]; H and W must be those that the FFP mask was made for."""
        if self.ffp_mask is None:
            return self._conv_forward(input, self.masked_weight(), self.bias)
        x, padding = explicit_padding(self, input)
        where = (self.stride, padding, self.dilation, self.groups)
        return masked_conv2d(x, self.masked_weight(), self.bias, self.ffp_mask, *where, weight_mask=self.fwp_mask)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The masks are in the state dict too: a dense network that is given it says so, instead of computing without them."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for kind in MASKS:
            if (mask := getattr(self, kind)) is not None:
                destination[prefix + kind] = mask

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: list[str]
    ) -> None:
        """Masks are never loaded: those in `state_dict`, where it has any, must be this layer's own."""
        for kind in MASKS:
            theirs, own = state_dict.pop(prefix + kind, None), getattr(self, kind)
            if theirs is not None and (own is None or not torch.equal(theirs.to(own.device), own)):
                errors.append(
                    f"{prefix + kind} is another mask than the network's; load the state into the network that it was saved from."
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        """Geometry, then the kept fraction of blocks and weights."""
        kept = {"ffp_kept": self.ffp_mask, "fwp_kept": self.fwp_mask}
        return super().extra_repr() + "".join(f", {k}={m.float().mean().item():.3f}" for k, m in kept.items() if m is not None)


def mask(conv: nn.Conv2d, *, ffp_mask: Tensor | None = None, fwp_mask: Tensor | None = None) -> MaskedConv2d:
    """Make `conv` itself a MaskedConv2d: whatever refers to it (hooks, a list, another module) meets its masks.

    UsageError where a mask has the wrong shape or dtype, or where the layer computes something of its own.
    """
    if isinstance(conv, LazyModuleMixin):
        raise UsageError("it is lazy and was never called; call the network once on a sample before")
    if reason := own_forward(conv):
        raise UsageError(f"it cannot carry masks: {reason}")
    _check_mask(ffp_mask, "FFP", (conv.weight.shape[1] * conv.groups, None, None))
    _check_mask(fwp_mask, "FWP", tuple(conv.weight.shape))
    conv.__class__ = _with_masks(type(conv))
    conv.register_buffer("ffp_mask", _to(ffp_mask, conv.weight), persistent=False)
    conv.register_buffer("fwp_mask", _to(fwp_mask, conv.weight), persistent=False)
    return conv  # type: ignore[return-value]


def unmask(layer: MaskedConv2d) -> None:
    """Make `layer` the plain convolution that it was, with the dropped weights at zero."""
    layer.weight = nn.Parameter(layer.masked_weight().detach())
    del layer.ffp_mask, layer.fwp_mask
    layer.__class__ = next(kind for kind in type(layer).__mro__ if not issubclass(kind, MaskedConv2d))  # type: ignore[assignment]


def _with_masks(kind: type[nn.Conv2d]) -> type[MaskedConv2d]:
    if issubclass(kind, MaskedConv2d):
        return kind
    return MaskedConv2d if kind is nn.Conv2d else _of_your_own(kind)  # type: ignore[arg-type]


@cache
def _of_your_own(kind: type[nn.Conv2d]) -> type[MaskedConv2d]:
    """MaskedConv2d for layers of a user's own class: they keep its methods and what isinstance says of them."""

    def reduce(layer: MaskedConv2d) -> tuple[Any, ...]:
        return _blank, (kind,), vars(layer)  # pickle looks classes up by name, and this one has none in its module

    return type(f"Masked{kind.__name__}", (MaskedConv2d, kind), {"__module__": kind.__module__, "__reduce__": reduce})


def _blank(kind: type[nn.Conv2d]) -> MaskedConv2d:
    return kind.__new__(_with_masks(kind))


def _check_mask(mask: Tensor | None, kind: str, shape: tuple[int | None, ...]) -> None:
    if mask is None:
        return
    fits = mask.dim() == len(shape) and all(want in (None, got) for want, got in zip(shape, mask.shape, strict=True))
    if mask.dtype != torch.bool or not fits:
        wanted = "x".join("*" if size is None else str(size) for size in shape)
        raise UsageError(f"{kind} mask must be bool of shape {wanted}, got {mask.dtype} of shape {tuple(mask.shape)}")


def _to(mask: Tensor | None, weight: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(weight.device)
