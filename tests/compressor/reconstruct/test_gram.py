"""Sums of products against loops over samples, positions and taps."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.compressor.layers import MaskedConv2d
from fineprune.compressor.reconstruct.gram import Gram, outputs_at, patches
from support.geometries import KINDS


def naive(conv: nn.Conv2d, padded: Tensor, mask: Tensor, at: list[int]) -> list[list[Tensor]]:
    """By group, a column for each sample and position: the patches of the group's channels, zero where the mask drops the block."""
    (kh, kw), (sh, sw), (dh, dw), per_group = conv.kernel_size, conv.stride, conv.dilation, conv.in_channels // conv.groups
    columns: list[list[Tensor]] = [[] for _ in range(conv.groups)]
    for group, sample, p in itertools.product(range(conv.groups), range(len(padded)), at):
        i, j = divmod(p, mask.shape[2])
        values = [
            padded[sample, c, i * sh + u * dh, j * sw + v * dw] * mask[c, i, j]
            for c in range(group * per_group, (group + 1) * per_group)
            for u in range(kh)
            for v in range(kw)
        ]
        columns[group].append(torch.stack(values + [torch.ones(())] * (conv.bias is not None)))
    return columns


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_those_of_the_patches(kind: str, bias: bool) -> None:
    geometry, random = KINDS[kind], torch.Generator().manual_seed(3)
    conv = nn.Conv2d(geometry.channels, geometry.filters, geometry.kernel, bias=bias, **geometry.options)  # type: ignore[arg-type]
    mask = torch.rand(geometry.channels, *geometry.output, generator=random) < 0.6
    layer = MaskedConv2d.wrap(conv, ffp_mask=mask)
    at = torch.arange(0, mask[0].numel(), 2)
    gram, inputs, products = Gram(layer), 0.0, 0.0
    for _ in range(2):
        x = torch.randn(3, geometry.channels, *geometry.size, generator=random)
        y = conv(x).detach()
        gram.add(patches(layer, x, at), outputs_at(layer, y, at))
        padded = F.pad(x, (geometry.padding[1],) * 2 + (geometry.padding[0],) * 2)
        columns = torch.stack([torch.stack(group, 1) for group in naive(layer, padded, mask, at.tolist())])
        wanted = y.flatten(2)[:, :, at].transpose(0, 1).reshape(layer.groups, -1, len(x) * len(at))
        inputs, products = inputs + columns @ columns.mT, products + columns @ wanted.mT
    assert gram.inputs.dtype == torch.float64
    assert torch.allclose(gram.inputs.float(), inputs, atol=1e-4)
    assert torch.allclose(gram.products.float(), products, atol=1e-4)


@pytest.mark.parametrize("padding", ["same", "valid", 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_any_padding_that_convolutions_take(padding: str | int, mode: str) -> None:
    """The kept weights times the patches are the layer's answer."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, (5, 3), padding=padding, padding_mode=mode)
    x = torch.randn(2, 3, 6, 5)
    y = conv(x).detach()
    at = torch.arange(y[0, 0].numel())
    columns = patches(conv, x, at)[0]
    weights = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], 1).detach()
    assert np.allclose((weights @ columns).numpy(), outputs_at(conv, y, at)[0].numpy(), atol=1e-5)
