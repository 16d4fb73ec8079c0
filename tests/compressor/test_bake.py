"""Masks become part of a copy of the network."""

import pickle
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from fineprune.calibrate.convolutions import find_convolutions
from fineprune.common.errors import UsageError
from fineprune.compressor.bake import bake, dense_twin, masked_layers, masks_of
from fineprune.compressor.layers import MaskedConv2d
from fineprune.ops.mask_facts import is_mask
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
    masked = bake(model, {"ffp": ffp, "fwp": fwp})
    assert [name for name, _ in masked_layers(masked)] == ["stem", "grouped", "depthwise", "down"]
    assert not any(isinstance(module, MaskedConv2d) for module in model.modules())
    assert torch.equal(model(images), before)
    assert not torch.equal(masked(images), before)
    assert [name for name in masked.state_dict() if not name.endswith("_mask")] == names
    assert masked.down.weight is not model.down.weight
    got_ffp, got_fwp = masks_of(masked).values()
    for got, given in ((got_ffp, ffp), (got_fwp, fwp)):
        assert got.keys() == given.keys()
        assert all(torch.equal(got[name], given[name]) for name in given)


def test_masks_of_ones_and_no_masks_change_nothing() -> None:
    model, images = varied().eval(), samples(4, dtype=torch.float64).images
    ffp, fwp = ({name: torch.ones_like(mask) for name, mask in each.items()} for each in masks())
    torch.testing.assert_close(bake(model, {"ffp": ffp, "fwp": fwp})(images), model(images))
    assert not list(masked_layers(bake(model, {})))


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("layer9.conv", torch.ones(1, 1, 1).bool(), "the masks name a layer 'layer9.conv' that the network does not have"),
        ("norm", torch.ones(1, 1, 1).bool(), "the masks name 'norm', which is a BatchNorm2d and no layer that can carry masks"),
        ("down", torch.ones(5, 3, 2).bool(), r"down: FFP mask must be bool of shape 6x\*x\*, got torch.bool of shape \(5, 3, 2\)"),
    ],
)
def test_masks_that_do_not_fit_are_named(name: str, mask: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bake(varied(), {"ffp": {name: mask}})


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
    masked = bake(model, {"ffp": {"conv": torch.ones(3, 7, 5, dtype=torch.bool)}}, input_shape=(3, 7, 5))
    torch.testing.assert_close(masked(x), model(x))
    torch.testing.assert_close(deepcopy(masked)(x), model(x))


class Mine(nn.Conv2d):
    """A user's own class: the forward of Conv2d, a method and an attribute of the class beside it."""

    gain = 2.0

    def gained(self, x: Tensor) -> Tensor:
        return self(x) * self.gain


class Referred(nn.Module):
    """A convolution that is reached by a second name, a plain list and a bound method, and is more than its class says."""

    def __init__(self, change: Callable[[nn.Conv2d], object] = lambda conv: None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = Mine(3, 4, 3)
        self.body = nn.Sequential(self.conv, nn.ReLU())
        self.plain, self.bound = [self.conv], self.conv.gained
        change(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.conv, Mine)
        return torch.cat([self.body(x), self.plain[0](x), self.bound(x)], 1)


CHANGES: dict[str, Callable[[nn.Conv2d], object]] = {
    "nothing": lambda conv: None,
    "forward hook": lambda conv: conv.register_forward_hook(lambda layer, inputs, output: 3 * output + 1),
    "pre-hook": lambda conv: conv.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,)),
    "pre-hook with keywords": lambda conv: conv.register_forward_pre_hook(lambda m, args, kw: ((args[0] + 1,), kw), with_kwargs=True),
    "private attribute": lambda conv: (setattr(conv, "_gain", 3.0), conv.register_forward_hook(lambda m, inputs, y: y * m._gain)),
    "buffer": lambda conv: (conv.register_buffer("by", torch.ones(4, 1, 1) * 3), conv.register_forward_hook(lambda m, inputs, y: y * m.by)),
    "parameter": lambda conv: (
        setattr(conv, "by", nn.Parameter(torch.ones(4, 1, 1))),
        conv.register_forward_hook(lambda m, i, y: y - m.by),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("kind", ["ffp", "fwp"])
def test_what_was_changed_on_a_layer_and_what_refers_to_it_stay(change: Callable[[nn.Conv2d], object], kind: str) -> None:
    model, images = Referred(change), samples(2).images
    before = model(images)
    ones = torch.ones(3, 5, 3, dtype=torch.bool) if kind == "ffp" else torch.ones(4, 3, 3, 3, dtype=torch.bool)
    same, none = (bake(model, {kind: {"conv": mask}}) for mask in (ones, ~ones))
    torch.testing.assert_close(same(images), before)
    assert [name for name in same.state_dict() if not is_mask(name)] == list(model.state_dict())
    assert same.body[0] is same.plain[0] is same.bound.__self__ is same.conv
    assert type(same.conv).__name__ == "MaskedMine" and isinstance(same.conv, MaskedConv2d)
    masked = none(images)
    for place, part in zip(before.chunk(3, 1), masked.chunk(3, 1), strict=True):
        assert not torch.equal(place, part), "the mask acts by every way to the layer"
        assert torch.equal(part, part[:1, :, :1, :1].expand_as(part)), "only the bias is left"
    assert type(model.conv) is Mine, "the model given is as it was"
    if kind == "fwp":
        twin = dense_twin(none)
        assert type(twin.conv) is Mine and twin.conv is twin.plain[0]
        assert torch.equal(twin(images), masked)
        assert list(twin.state_dict()) == list(model.state_dict()) and not twin.conv.weight.any()


def test_a_masked_layer_of_a_users_class_is_copied_and_pickled() -> None:
    layer, images = MaskedConv2d.wrap(Mine(3, 4, 3), fwp_mask=(torch.arange(108) % 2 == 0).view(4, 3, 3, 3)), samples(2).images
    for copy in (pickle.loads(pickle.dumps(layer)), deepcopy(layer)):
        assert type(copy) is type(layer) and copy.weight is not layer.weight
        assert torch.equal(copy.gained(images), layer.gained(images))


def test_a_layer_with_a_forward_of_its_own_is_refused() -> None:
    model = varied()
    model.down.forward = lambda x: 2 * nn.Conv2d.forward(model.down, x)
    with pytest.raises(UsageError, match="down: it cannot carry masks: its forward is replaced on the module itself"):
        bake(model, {"fwp": {"down": torch.ones(5, 6, 3, 3, dtype=torch.bool)}})
    with pytest.raises(UsageError, match="0: it is lazy and was never called; call the network once on a sample before"):
        bake(nn.Sequential(nn.LazyConv2d(3, 3)), {"fwp": {"0": torch.ones(3, 3, 3, 3, dtype=torch.bool)}})


def test_activations_that_the_network_keeps_do_not_hinder() -> None:
    model = varied()
    model.kept = [model(samples(2, dtype=torch.float64).images)]
    assert torch.equal(bake(model, {}).kept[0], model.kept[0])
