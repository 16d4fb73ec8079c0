"""The products of layers as one: a convolution of two dimensions, of which everything else is written.

    conv1d            x[N,C,L]     an image of one row                      weight [F,C/groups,k]    -> [F,C/groups,1,k]
    linear            x[N,...,C]   an image of one row, its positions       weight [F,C]             -> [F,C,1,1]
    conv_transpose2d  x[N,C,H,W]   zeros between and around the elements    weight [C,F/groups,k,k]  -> [F,C/groups,k,k], mirrored

A `Product` says how; nothing is computed that way but statistics, the layers compute as they do. Other products have none.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .geometry import Conv


class Problem(NamedTuple):
    """x[N,C,H,W], padded wherever zeros of the same width on both sides do not say it, and how the kernel walks over it."""

    x: Tensor
    conv: Conv


class Product:
    """conv2d, which is what it is."""

    name = "conv2d"
    layer: type[nn.Module] = nn.Conv2d
    function: Callable[..., Tensor] = staticmethod(torch.conv2d)

    def filters(self, weight: Tensor, groups: int) -> Tensor:
        """[F,C/groups,kh,kw] of the layer's weight."""
        return weight

    def weight(self, filters: Tensor, groups: int) -> Tensor:
        """The layer's weight, or a mask of it, of [F,C/groups,kh,kw]."""
        return filters

    def problem(self, x: Tensor, weight: Tensor, **how: Any) -> Problem:
        """Of the arguments of the product."""
        kernel = weight.shape[2:]
        stride, dilation = _pair(how.get("stride", 1)), _pair(how.get("dilation", 1))
        padding = how.get("padding", 0)
        if padding == "same":
            widths = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            (top, bottom), (left, right) = [(width // 2, width - width // 2) for width in widths]
            x, padding = F.pad(x, (left, right, top, bottom)), 0
        elif padding == "valid":
            padding = 0
        return Problem(x, Conv(stride, _pair(padding), dilation, how.get("groups", 1)))

    def image(self, y: Tensor) -> Tensor:
        """Outputs as [N,F,oh,ow]."""
        return y

    def outputs(self, image: Tensor, shape: Sequence[int]) -> Tensor:
        """The layer's outputs, of `shape`, of [N,F,oh,ow]."""
        return image

    def placements(self, x: Tensor) -> int | None:
        """How often each kernel is multiplied with a patch, where that is not once for every position of the output."""
        return None

    def reads(self, weight: Tensor, groups: int) -> tuple[int, tuple[int, ...]]:
        """Channels, and the size of the kernel, of the layer's weight."""
        return weight.shape[1] * groups, tuple(weight.shape[2:])


class Row(Product):
    """conv1d."""

    name = "conv1d"
    layer, function = nn.Conv1d, staticmethod(torch.conv1d)

    def filters(self, weight: Tensor, groups: int) -> Tensor:
        """[F,C/groups,1,k]."""
        return weight.unsqueeze(2)

    def weight(self, filters: Tensor, groups: int) -> Tensor:
        """[F,C/groups,k]."""
        return filters.squeeze(2)

    def problem(self, x: Tensor, weight: Tensor, **how: Any) -> Problem:
        """One row."""
        along = {key: (first, _single(how.get(key, first))) for key, first in (("stride", 1), ("dilation", 1))}
        padding = how.get("padding", 0)
        padding = padding if isinstance(padding, str) else (0, _single(padding))
        return super().problem(x.unsqueeze(2), weight.unsqueeze(2), padding=padding, groups=how.get("groups", 1), **along)

    def image(self, y: Tensor) -> Tensor:
        """[N,F,1,L]."""
        return y.unsqueeze(2)

    def outputs(self, image: Tensor, shape: Sequence[int]) -> Tensor:
        """[N,F,L]."""
        return image.squeeze(2)


class Dense(Product):
    """linear."""

    name = "linear"
    layer, function = nn.Linear, staticmethod(F.linear)

    def filters(self, weight: Tensor, groups: int) -> Tensor:
        """[F,C,1,1]."""
        return weight[:, :, None, None]

    def weight(self, filters: Tensor, groups: int) -> Tensor:
        """[F,C]."""
        return filters[:, :, 0, 0]

    def problem(self, x: Tensor, weight: Tensor, **how: Any) -> Problem:
        """The features of every position are channels."""
        return Problem(self.image(x), Conv())

    def image(self, y: Tensor) -> Tensor:
        """[N,F,1,positions]."""
        return y.reshape(len(y), -1, y.shape[-1]).transpose(1, 2).unsqueeze(2)

    def outputs(self, image: Tensor, shape: Sequence[int]) -> Tensor:
        """[N,...,F]."""
        return image.squeeze(2).transpose(1, 2).reshape(shape)


class Transposed(Product):
    """conv_transpose2d."""

    name = "conv_transpose2d"
    layer, function = nn.ConvTranspose2d, staticmethod(torch.conv_transpose2d)

    def filters(self, weight: Tensor, groups: int) -> Tensor:
        """[F,C/groups,kh,kw]: channels and filters change places within their group, and the kernel is mirrored."""
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)

    def weight(self, filters: Tensor, groups: int) -> Tensor:
        """[C,F/groups,kh,kw]: the same again."""
        return self.filters(filters, groups)

    def problem(self, x: Tensor, weight: Tensor, **how: Any) -> Problem:
        """stride - 1 zeros between the elements; around them what the kernel reaches beyond the padding."""
        stride, padding, dilation = (_pair(how.get(key, first)) for key, first in (("stride", 1), ("padding", 0), ("dilation", 1)))
        more = _pair(how.get("output_padding", 0))
        wide = x.new_zeros(*x.shape[:2], *((size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)))
        wide[:, :, :: stride[0], :: stride[1]] = x
        around = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
        wide = F.pad(wide, (around[1], around[1] + more[1], around[0], around[0] + more[0]))
        return Problem(wide, Conv(dilation=dilation, groups=how.get("groups", 1)))

    def placements(self, x: Tensor) -> int:
        """Once for each element of the input."""
        return x.numel() // x.shape[1]

    def reads(self, weight: Tensor, groups: int) -> tuple[int, tuple[int, ...]]:
        """Channels come first here."""
        return weight.shape[0], tuple(weight.shape[2:])


PRODUCTS: tuple[Product, ...] = (Product(), Row(), Dense(), Transposed())
NAMES = tuple(product.name for product in PRODUCTS)
_ARGUMENTS = {
    torch.conv_transpose2d: ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    F.linear: ("input", "weight", "bias"),
}
_OF_CONVOLUTIONS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def product_of(kind: type[nn.Module]) -> Product | None:
    """How layers of a class multiply; None where that is no product of ours."""
    return next((product for product in PRODUCTS if issubclass(kind, product.layer)), None)


def arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """By name: input, weight, bias (or None), and how."""
    return {"bias": None, **dict(zip(_ARGUMENTS.get(function, _OF_CONVOLUTIONS), args, strict=False)), **kwargs}


def _single(value: Any) -> int:
    return int(value[0] if isinstance(value, Sequence) else value)


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return int(values[0]), int(values[-1])
