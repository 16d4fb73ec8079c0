"""Which convolutions can carry masks, and choosing among them by globs."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from fineprune.calibrate.convolutions import ConvSite, evaluating, find_convolutions, probe, select_sites
from fineprune.common.errors import UsageError
from support.networks import CONVOLUTIONS, SHAPE, varied


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


class Awkward(nn.Module):
    """One convolution that can carry masks among those that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(3, 3, 3)
        self.fine = nn.Conv2d(3, 3, 3, padding=1)
        self.twice = nn.Conv2d(3, 3, 1)
        self.transposed = nn.ConvTranspose2d(3, 3, 3, padding=1)
        self.volume = nn.Conv3d(1, 1, 3, padding=1)
        self.line = nn.Conv1d(3, 3, 1)
        self.unbatched = nn.Conv2d(3, 3, 1)
        self.parametrized = parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
        self.pruned = prune.l1_unstructured(nn.Conv2d(3, 3, 1), "weight", 0.5)
        self.own = OwnForward(3, 3, 1)
        self.standardised = OwnConvForward(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.fine(x)))
        x = self.volume(self.transposed(x)[:, None])[:, 0]
        x = self.line(x.flatten(2)).view_as(x)
        return self.standardised(self.own(self.pruned(self.parametrized(self.unbatched(x[0])[None]))))


def test_convolutions_that_stay_dense_are_named_with_the_reason() -> None:
    sites, skipped = find_convolutions(Awkward(), SHAPE)
    assert {site.name: site.weights_only for site in sites} == {
        "fine": "",
        "twice": "it runs 2 times in one forward pass, and a mask of blocks belongs to one place",
        "parametrized": "",
        "own": "OwnForward replaces the forward of Conv2d",
        "standardised": "OwnConvForward replaces the forward of Conv2d",
    }
    assert {s.name: s.reason for s in skipped} == {
        "unused": "the forward pass does not call it as a module",
        "transposed": "ConvTranspose2d is left as it is unless its type, conv_transpose2d, is asked for (layer_types)",
        "volume": "no masks are known for Conv3d",
        "line": "Conv1d is left as it is unless its type, conv1d, is asked for (layer_types)",
        "unbatched": "its input has no batch axis",
        "pruned": "its weight is computed by a hook (weight_norm, torch.nn.utils.prune); remove that first",
    }


def test_other_types_of_layers_are_convolutions_of_two_dimensions_too() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 3, stride=2, groups=1)
            self.line = nn.Conv1d(4, 6, 5, groups=2)
            self.head = nn.Linear(6, 2)
            self.unused = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.line(self.up(x).flatten(2)).transpose(1, 2))

    sites, skipped = find_convolutions(Others(), (3, 4, 5), ("conv_transpose2d", "conv1d", "linear"))
    facts = {site.name: (site.weight_shape, site.groups, site.output_size, site.placements, site.product) for site in sites}
    assert facts == {
        "up": ((4, 3, 3, 3), 1, (9, 11), 20, "conv_transpose2d"),
        "line": ((6, 2, 1, 5), 2, (1, 95), 95, "conv1d"),
        "head": ((2, 6, 1, 1), 1, (1, 95), 95, "linear"),
    }
    assert [site.weights_only for site in sites] == [f"{kind} is not a 2-D convolution" for kind in ("ConvTranspose2d", "Conv1d", "Linear")]
    assert [(s.name, s.reason) for s in skipped] == [("unused", "the forward pass does not call it as a module")]
    assert sites[0].macs == 20 * 4 * 3 * 9


@pytest.mark.parametrize("name", ["forward", "_conv_forward"])
def test_a_convolution_changed_on_the_module_itself_stays_dense(name: str) -> None:
    model = varied()
    own = {"forward": lambda x: 2 * nn.Conv2d.forward(model.down, x), "_conv_forward": lambda x, weight, bias: torch.conv2d(x, weight)}
    setattr(model.down, name, own[name])
    sites, skipped = find_convolutions(model, SHAPE)
    assert [site.name for site in sites] == CONVOLUTIONS[:-1]
    assert [(s.name, s.reason) for s in skipped] == [("down", f"its {name} is replaced on the module itself")]


def test_hooks_do_not_change_the_shapes_of_a_site() -> None:
    plain, model = varied(), varied()
    model.down.register_forward_hook(lambda layer, inputs, output: output[..., :1, :1])
    assert find_convolutions(model, SHAPE) == find_convolutions(plain, SHAPE)


def test_sites_have_the_shapes_of_the_layers_in_order_of_execution() -> None:
    sites, skipped = find_convolutions(varied(), SHAPE)
    assert skipped == []
    assert [site.name for site in sites] == CONVOLUTIONS
    assert sites[1] == ConvSite(name="grouped", in_channels=6, out_channels=4, kernel=(3, 2), groups=2, output_size=(7, 5))
    down = sites[-1]
    assert (down.output_size, down.positions, down.taps, down.block_macs, down.macs) == ((3, 2), 6, 9, 45, 6 * 6 * 45)
    assert sites[1].block_macs == 2 * 6, "two filters read a channel"


def test_looking_changes_nothing() -> None:
    model = varied()
    model.train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    find_convolutions(model, SHAPE)
    with pytest.raises(UsageError):
        find_convolutions(model, (1, 7, 5))
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_an_input_that_does_not_fit_is_named() -> None:
    with pytest.raises(UsageError, match=r"the network does not accept an input of shape 3x1x1: .*; give its input as --input CxHxW"):
        probe(varied(), (3, 1, 1))


def test_any_failure_of_the_networks_own_code_is_named() -> None:
    class TwoInputs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(UsageError, match=r"an input of shape 3x4x4: .*missing 1 required positional argument: 'y'"):
        probe(TwoInputs(), (3, 4, 4))


def test_an_input_given_by_name_is_seen() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(input=x)

    (site,), _ = find_convolutions(ByName(), (3, 6, 4))
    assert site.output_size == (4, 2)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), CONVOLUTIONS),
        (("*wise", "stem"), (), ["stem", "depthwise", "pointwise"]),
        ((), ("stem", "d*"), ["grouped", "pointwise"]),
        (("*wise",), ("depth*",), ["pointwise"]),
    ],
)
def test_sites_are_chosen_by_globs(include: tuple[str, ...], exclude: tuple[str, ...], expected: list[str]) -> None:
    sites, _ = find_convolutions(varied(), SHAPE)
    assert [site.name for site in select_sites(sites, include=include, exclude=exclude)] == expected


@pytest.mark.parametrize("where", ["include", "exclude"])
def test_a_glob_without_a_match_is_refused(where: str) -> None:
    sites, _ = find_convolutions(varied(), SHAPE)
    message = r"the pattern 'Stem' matches no convolution; they are: stem, grouped, depthwise, pointwise, down"
    with pytest.raises(UsageError, match=message):
        select_sites(sites, **{where: ("stem", "Stem")})


def test_networks_are_compared_without_tf32() -> None:
    conv, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, products.fp32_precision
    with evaluating(torch.nn.Flatten()):
        assert (conv.fp32_precision, products.fp32_precision) == ("ieee", "ieee")
    assert (conv.fp32_precision, products.fp32_precision) == before != ("ieee", "ieee")


def test_evaluating_ends_with_its_block() -> None:
    model = varied()
    model.norm.eval()
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("inside")
    assert [name for name, module in model.named_modules() if not module.training] == ["norm"]
