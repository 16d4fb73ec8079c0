"""Sums of products against those of patches and outputs."""

import pytest
import torch
from torch import nn

from fineprune.compressor.reconstruct.gram import Gram, outputs_at
from support.geometries import KINDS
from support.patches import patches


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_those_of_all_batches(kind: str, bias: bool) -> None:
    geometry, random = KINDS[kind], torch.Generator().manual_seed(3)
    conv = nn.Conv2d(geometry.channels, geometry.filters, geometry.kernel, bias=bias, **geometry.options)  # type: ignore[arg-type]
    mask = torch.rand(geometry.channels, *geometry.output, generator=random) < 0.6
    at = torch.arange(0, mask[0].numel(), 2)
    gram, inputs, products = Gram(conv), 0.0, 0.0
    for _ in range(2):
        x = torch.randn(3, geometry.channels, *geometry.size, generator=random)
        y = conv(x).detach()
        columns = patches(conv, x, mask, at, constant=bias)
        gram.add(columns, outputs_at(y, at, conv.groups))
        wanted = torch.stack([y[n, :, p // y.shape[3], p % y.shape[3]] for n in range(3) for p in at.tolist()], 1)
        wanted = wanted.unflatten(0, (conv.groups, -1))
        inputs, products = inputs + columns @ columns.mT, products + columns @ wanted.mT
    assert gram.inputs.dtype == torch.float64
    torch.testing.assert_close(gram.inputs.float(), inputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gram.products.float(), products, rtol=1e-4, atol=1e-4)
