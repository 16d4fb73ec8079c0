"""A convolution that carries its masks: an ordinary nn.Conv2d to optimizers, checkpoints and export.

The masks act in `forward`, so gradients of dropped weights are zero and whatever an optimizer does to those weights
(momentum, weight decay, averaging) never reaches the output.
"""

from collections.abc import Sequence
from copy import copy
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from fineprune.calibrate.convolutions import own_forward
from fineprune.common.errors import UsageError
from fineprune.ops.masked_conv import explicit_padding, masked_conv2d

from .masks import KINDS, MaskKind
from .masks.kind import buffer, label


class MaskedConv2d(nn.Conv2d):
    """nn.Conv2d under masks, each a buffer (`ffp_mask` bool [C,oh,ow], `fwp_mask` bool [F,C/groups,kh,kw]); None: nothing is dropped."""

    ffp_mask: Tensor | None
    fwp_mask: Tensor | None

    @classmethod
    def wrap(cls, conv: nn.Conv2d, **masks: Tensor | None) -> "MaskedConv2d":
        """A layer beside `conv` with its parameters (not copies), hooks and attributes. UsageError as in `mask`."""
        layer = type(conv).__new__(type(conv))
        vars(layer).update({key: copy(value) if isinstance(value, dict | set) else value for key, value in vars(conv).items()})
        return mask(layer, **masks)

    def carried(self) -> list[tuple[MaskKind, Tensor]]:
        """The kinds of masks that the layer carries, and the masks."""
        return [(kind, mask) for kind in KINDS if (mask := self._buffers[buffer(kind)]) is not None]

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks that the layer carries, by the name of their kind."""
        return {kind.name: mask for kind, mask in self.carried()}

    @property
    def block_mask(self) -> Tensor | None:
        """What all masks together keep of the blocks, bool [C,oh,ow]; None for everything."""
        return _joint([kind.as_block_mask(mask) for kind, mask in self.carried()])

    @property
    def weight_mask(self) -> Tensor | None:
        """What all masks together keep of the weights, bool [F,C/groups,kh,kw]; None for everything."""
        return _joint([kind.as_weight_mask(mask) for kind, mask in self.carried()])

    def masked_weight(self) -> Tensor:
        """weight[F,C/groups,kh,kw] with the dropped taps at exactly zero."""
        kept = self.weight_mask
        return self.weight if kept is None else self.weight * kept

    def fold_weight_masks(self) -> None:
        """Dropped weights become zeros of a parameter of this layer's own (tied layers may carry different masks)."""
        if self.weight_mask is None:
            return
        self.weight = nn.Parameter(self.masked_weight().detach(), requires_grad=False)
        for kind, mask in self.carried():
            if kind.as_weight_mask(mask) is not None:
                setattr(self, buffer(kind), None)

    def forward(self, input: Tensor) -> Tensor:
        """x[N,C,H,W] -> y[N,F,oh,ow]; H and W must be those that the FFP mask was made for."""
        blocks = self.block_mask
        if blocks is None:
            return self._conv_forward(input, self.masked_weight(), self.bias)
        x, padding = explicit_padding(self, input)
        where = (self.stride, padding, self.dilation, self.groups)
        return masked_conv2d(x, self.masked_weight(), self.bias, blocks, *where, weight_mask=self.weight_mask)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The masks are in the state dict too: a dense network that is given it says so, instead of computing without them."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for kind, mask in self.carried():
            destination[prefix + buffer(kind)] = mask

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: list[str]
    ) -> None:
        """Masks are never loaded: those in `state_dict`, where it has any, must be this layer's own."""
        for kind in KINDS:
            theirs, own = state_dict.pop(prefix + buffer(kind), None), self.masks.get(kind.name)
            if theirs is not None and (own is None or not torch.equal(theirs.to(own.device), own)):
                errors.append(
                    f"{prefix + buffer(kind)} is another mask than the network's; load the state into the network that it was saved from."
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        """Geometry, then the kept fraction of blocks and weights."""
        return super().extra_repr() + "".join(f", {name}_kept={mask.float().mean().item():.3f}" for name, mask in self.masks.items())


def mask(conv: nn.Conv2d, **masks: Tensor | None) -> MaskedConv2d:
    """Make `conv` itself a MaskedConv2d: whatever refers to it (hooks, a list, another module) meets its masks.

    masks: by the names of the buffers. Those that the layer carries already stay: what either drops is dropped.
    UsageError where a mask has the wrong shape or dtype, or where the layer computes something of its own.
    """
    if isinstance(conv, LazyModuleMixin):
        raise UsageError("it is lazy and was never called; call the network once on a sample before")
    if reason := own_forward(conv):
        raise UsageError(f"it cannot carry masks: {reason}")
    carried = conv.masks if isinstance(conv, MaskedConv2d) else {}
    together: dict[str, Tensor | None] = {}
    for kind in KINDS:
        given = masks.pop(buffer(kind), None)
        _check_mask(given, label(kind), kind.shape(conv.weight.shape, conv.groups, (None, None)))
        both = [one.to(conv.weight.device) for one in (carried.get(kind.name), given) if one is not None]
        if len(both) == 2 and both[0].shape != both[1].shape:
            raise UsageError(f"it carries a {label(kind)} mask of shape {tuple(both[0].shape)}, not {tuple(both[1].shape)}")
        together[buffer(kind)] = _joint(both)
    if masks:
        raise TypeError(f"there is no mask called {next(iter(masks))!r}")
    conv.__class__ = _with_masks(type(conv))
    for name, one in together.items():
        conv.register_buffer(name, one, persistent=False)
    return conv  # type: ignore[return-value]


def unmask(layer: MaskedConv2d) -> None:
    """Make `layer` the plain convolution that it was, with the dropped weights at zero."""
    layer.weight = nn.Parameter(layer.masked_weight().detach())
    for kind in KINDS:
        delattr(layer, buffer(kind))
    layer.__class__ = next(kind for kind in type(layer).__mro__ if not issubclass(kind, MaskedConv2d))  # type: ignore[assignment]


def _with_masks(kind: type[nn.Conv2d]) -> type[MaskedConv2d]:
    if issubclass(kind, MaskedConv2d):
        return kind
    return MaskedConv2d if kind is nn.Conv2d else _of_your_own(kind)  # type: ignore[arg-type]


@cache
def _of_your_own(kind: type[nn.Conv2d]) -> type[MaskedConv2d]:
    """MaskedConv2d for layers of a user's own class: they keep its methods and what isinstance says of them."""

    def pickled(layer: MaskedConv2d) -> tuple[Any, ...]:
        return _blank, (kind,), vars(layer)  # pickle looks classes up by name, and this one has none in its module

    return type(f"Masked{kind.__name__}", (MaskedConv2d, kind), {"__module__": kind.__module__, "__reduce__": pickled})


def _blank(kind: type[nn.Conv2d]) -> MaskedConv2d:
    return kind.__new__(_with_masks(kind))


def _check_mask(mask: Tensor | None, kind: str, shape: tuple[int | None, ...]) -> None:
    if mask is None:
        return
    fits = mask.dim() == len(shape) and all(want in (None, got) for want, got in zip(shape, mask.shape, strict=True))
    if mask.dtype != torch.bool or not fits:
        wanted = "x".join("*" if size is None else str(size) for size in shape)
        raise UsageError(f"{kind} mask must be bool of shape {wanted}, got {mask.dtype} of shape {tuple(mask.shape)}")


def _joint(masks: Sequence[Tensor | None]) -> Tensor | None:
    """What all of them keep: a single mask itself, for what is known of a mask is kept with it."""
    given = [mask for mask in masks if mask is not None]
    return reduce(torch.logical_and, given) if given else None
