"""A convolution that carries its masks: an ordinary nn.Conv2d to optimizers, checkpoints and export.

The masks act in `forward`, so gradients of dropped weights are zero and whatever an optimizer does to those weights
(momentum, weight decay, averaging) never reaches the output.
"""

from typing import Self

import torch
from torch import Tensor, nn

from ..calibrate.masked_conv import explicit_padding, masked_conv2d
from ..common.errors import UsageError


class MaskedConv2d(nn.Conv2d):
    """nn.Conv2d under an FFP mask (bool [C,oh,ow]) and an FWP mask (bool [F,C/groups,kh,kw]); None means nothing is dropped."""

    ffp_mask: Tensor | None
    fwp_mask: Tensor | None

    @classmethod
    def wrap(cls, conv: nn.Conv2d, *, ffp_mask: Tensor | None = None, fwp_mask: Tensor | None = None) -> Self:
        """Take over the parameters (not copies) and geometry of `conv`. UsageError where a mask has the wrong shape or dtype."""
        _check_mask(ffp_mask, "FFP", (conv.in_channels, None, None))
        _check_mask(fwp_mask, "FWP", tuple(conv.weight.shape))
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.__dict__.update({key: value for key, value in conv.__dict__.items() if not key.startswith("_") or key in _CONV_PRIVATE})
        layer.weight, layer.bias = conv.weight, conv.bias
        layer.register_buffer("ffp_mask", _to(ffp_mask, conv.weight), persistent=False)
        layer.register_buffer("fwp_mask", _to(fwp_mask, conv.weight), persistent=False)
        layer.train(conv.training)
        return layer

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

    def extra_repr(self) -> str:
        """Geometry, then the kept fraction of blocks and weights."""
        kept = {"ffp_kept": self.ffp_mask, "fwp_kept": self.fwp_mask}
        return super().extra_repr() + "".join(f", {k}={m.float().mean().item():.3f}" for k, m in kept.items() if m is not None)


_CONV_PRIVATE = ("_reversed_padding_repeated_twice",)


def _check_mask(mask: Tensor | None, kind: str, shape: tuple[int | None, ...]) -> None:
    if mask is None:
        return
    fits = mask.dim() == len(shape) and all(want in (None, got) for want, got in zip(shape, mask.shape, strict=True))
    if mask.dtype != torch.bool or not fits:
        wanted = "x".join("*" if size is None else str(size) for size in shape)
        raise UsageError(f"{kind} mask must be bool of shape {wanted}, got {mask.dtype} of shape {tuple(mask.shape)}")


def _to(mask: Tensor | None, weight: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(weight.device)
