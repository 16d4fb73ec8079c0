"""Masks become part of a copy of the network."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from fineprune.calibrate.convolutions import find_convolutions
from fineprune.common.errors import UsageError
from fineprune.compressor.bake import bake, masked_layers, masks_of
from fineprune.compressor.layers import MaskedConv2d
from support.networks import SHAPE, samples, varied


def masks(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """FFP masks of two layers, FWP masks of two others and one of the same."""
    generator, model = torch.Generator().manual_seed(seed), varied()
    sites = {site.name: site for site in find_convolutions(model, SHAPE)[0]}
    ffp = {n: torch.rand(sites[n].in_channels, *sites[n].output_size, generator=generator) < 0.5 for n in ("stem", "down")}
    fwp = {n: torch.rand(model.get_submodule(n).weight.shape, generator=generator) < 0.5 for n in ("down", "grouped", "depthwise")}
    return ffp, fwp


def test_the_copy_is_masked_and_the_original_is_not() -> None:
    model, images = varied().eval(), samples(4, dtype=torch.float64).images
    before, names = model(images), list(model.state_dict())
    ffp, fwp = masks()
    masked = bake(model, ffp_masks=ffp, fwp_masks=fwp)
    assert [name for name, _ in masked_layers(masked)] == ["stem", "grouped", "depthwise", "down"]
    assert not any(isinstance(module, MaskedConv2d) for module in model.modules())
    assert torch.equal(model(images), before)
    assert not torch.equal(masked(images), before)
    assert [name for name in masked.state_dict() if not name.endswith("_mask")] == names
    assert masked.down.weight is not model.down.weight
    got_ffp, got_fwp = masks_of(masked)
    for got, given in ((got_ffp, ffp), (got_fwp, fwp)):
        assert got.keys() == given.keys()
        assert all(torch.equal(got[name], given[name]) for name in given)


def test_masks_of_ones_and_no_masks_change_nothing() -> None:
    model, images = varied().eval(), samples(4, dtype=torch.float64).images
    ffp, fwp = ({name: torch.ones_like(mask) for name, mask in each.items()} for each in masks())
    torch.testing.assert_close(bake(model, ffp_masks=ffp, fwp_masks=fwp)(images), model(images))
    assert not list(masked_layers(bake(model)))


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("layer9.conv", torch.ones(1, 1, 1).bool(), "the masks name a layer 'layer9.conv' that the network does not have"),
        ("norm", torch.ones(1, 1, 1).bool(), "the masks name 'norm', which is a BatchNorm2d and not a Conv2d"),
        ("down", torch.ones(5, 3, 2).bool(), r"down: FFP mask must be bool of shape 6x\*x\*, got torch.bool of shape \(5, 3, 2\)"),
    ],
)
def test_masks_that_do_not_fit_are_named(name: str, mask: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bake(varied(), ffp_masks={name: mask})


class Viewing(nn.Module):
    """Flattens as LeNet does, which needs NCHW memory; or, `silent`, reads memory in its order without a failure."""

    def __init__(self, *, silent: bool) -> None:
        super().__init__()
        self.conv, self.silent = nn.Conv2d(3, 4, 3, padding=1), silent

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return x.as_strided((len(x), 4 * 35), (4 * 35, 1)) if self.silent else x.view(len(x), -1)


@pytest.mark.parametrize("silent", [False, True])
def test_block_masked_layers_answer_in_the_order_that_the_forward_needs(silent: bool) -> None:
    model, x = Viewing(silent=silent).eval(), torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    masked = bake(model, ffp_masks={"conv": torch.ones(3, 7, 5, dtype=torch.bool)}, input_shape=(3, 7, 5))
    torch.testing.assert_close(masked(x), model(x))
    torch.testing.assert_close(deepcopy(masked)(x), model(x))
