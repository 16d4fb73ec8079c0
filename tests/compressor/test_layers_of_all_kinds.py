"""Weight masks in layers with a forward of their own, computed weights, several calls, and products that are no 2-D convolution."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fineprune.calibrate.calls import Call, acting, seen, weight_of
from fineprune.calibrate.collect import CalibrationConfig
from fineprune.calibrate.convolutions import find_convolutions
from fineprune.common.errors import UsageError
from fineprune.compressor.bake import bake, dense_twin, masks_of
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.config import prune_config
from fineprune.compressor.layers import MaskedLayer, mask
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.reconstruct.run import reconstruct
from support.networks import samples

TYPES = ("conv2d", "conv1d", "linear", "conv_transpose2d")


class Same(nn.Conv2d):
    """TensorFlow's padding: more of it below and to the right."""

    def forward(self, input: Tensor) -> Tensor:
        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        tall, wide = (max((-(-size // s) - 1) * s + k - size, 0) for size, s, k in zip(input.shape[2:], (sh, sw), (kh, kw), strict=True))
        input = F.pad(input, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        return F.conv2d(input, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Network(nn.Module):
    """Every kind of layer that can carry masks of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Same(3, 4, 3, stride=2, bias=False)
        self.grouped = Same(4, 4, (3, 2), groups=2)
        self.standard = Standardised(4, 6, 3, padding=1)
        self.twice = nn.Conv2d(6, 6, 3, padding="same", groups=3)
        self.normed = parametrizations.weight_norm(nn.Conv2d(6, 4, 1))
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.row = nn.Conv1d(6, 4, 3, stride=2, padding=1, dilation=2)
        self.tokens = Scaled(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.standard(torch.tanh(self.grouped(torch.tanh(self.stem(x))))))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        x = torch.tanh(self.up(torch.tanh(self.normed(x))))
        x = torch.tanh(self.row(x.flatten(2))).transpose(1, 2)
        return self.head(torch.tanh(self.tokens(x)).mean(1))


LAYERS = ("stem", "grouped", "standard", "twice", "normed", "up", "row", "tokens", "head")
COMPUTED = {"standard", "normed"}


@pytest.fixture
def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network().eval()


def masks_for(model: nn.Module, share: float = 0.5) -> dict[str, Tensor]:
    sites, _ = find_convolutions(model, (3, 7, 5), TYPES)
    random = torch.Generator().manual_seed(1)
    return {site.name: torch.rand(site.weight_shape, generator=random) < share for site in sites}


def zeroed(layer: nn.Module, kept: Tensor) -> nn.Module:
    """A plain layer that computes what `layer` does with what it multiplies set to zero where `kept` is false: written out by hand."""
    layer = deepcopy(layer)
    match layer:
        case Standardised():
            weight = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
            plain = nn.Conv2d(4, 6, 3, padding=1)
            plain.weight = nn.Parameter((weight / weight.std((1, 2, 3), keepdim=True) * kept).detach())
            plain.bias = layer.bias
            return plain
        case nn.ConvTranspose2d():
            for f in range(6):  # filter f of its group g reads that group's two channels, its kernel turned round
                for c in range(2):
                    layer.weight.data[2 * (f // 3) + c, f % 3] *= kept[f, c].flip(0, 1)
            return layer
        case _ if hasattr(layer, "parametrizations"):
            plain = nn.Conv2d(6, 4, 1)
            plain.weight, plain.bias = nn.Parameter((layer.weight * kept).detach()), layer.bias
            return plain
    layer.weight.data *= kept.reshape(layer.weight.shape)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_the_mask_of_any_layer_drops_what_reaches_its_product(network: Network, name: str) -> None:
    kept, x = masks_for(network)[name], samples(3).images
    expected = deepcopy(network)
    setattr(expected, name, zeroed(getattr(network, name), kept))
    masked = bake(network, {"fwp": {name: kept}})
    layer = masked.get_submodule(name)
    assert isinstance(layer, MaskedLayer) and isinstance(layer, type(getattr(network, name)))
    torch.testing.assert_close(masked(x), expected(x))
    torch.testing.assert_close(weight_of(layer) != 0, kept)
    assert layer.computed == (name in COMPUTED)
    torch.testing.assert_close(dense_twin(masked)(x), expected(x))
    layer.fold_weight_masks()
    torch.testing.assert_close(masked(x), expected(x))


@pytest.mark.parametrize("name", LAYERS)
def test_dropped_weights_get_no_gradient(network: Network, name: str) -> None:
    if name in COMPUTED:
        pytest.skip("its gradients are those of what it computes weights of")
    kept = masks_for(network)[name]
    masked = bake(network, {"fwp": {name: kept}})
    masked(samples(2).images).square().sum().backward()
    layer = masked.get_submodule(name)
    assert isinstance(layer, MaskedLayer)
    gone = ~layer.own_weight_mask  # type: ignore[operator]
    gradient = layer.own_weight.grad
    assert isinstance(gradient, Tensor) and gone.any()
    assert (gradient[gone] == 0).all() and (gradient[~gone] != 0).any()


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_seen_of_a_layer_is_a_convolution_that_gives_its_outputs(network: Network, name: str) -> None:
    layer, calls = network.get_submodule(name), list[tuple[Call, Tensor]]()

    def note(call: Call) -> Tensor:
        calls.append((call, call.output()))
        return calls[-1][1]

    class Watched:
        def __init__(self) -> None:
            self.layer = layer
            self.forward: Callable = seen(layer, layer.forward, note)

    x = samples(2).images
    expected = network(x)
    with acting([Watched()]):
        torch.testing.assert_close(network(x), expected)
    assert len(calls) == (2 if name == "twice" else 1)
    for call, y in calls:
        torch.testing.assert_close(F.conv2d(call.x, call.weight, call.bias, *call.conv), y, rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(layer)


def pruned_network(network: Network, preset: str = "obs", **fwp: object) -> tuple[nn.Module, CalibrationRun]:
    source = samples(24)
    run = CalibrationRun(source=source, input_shape=(3, 7, 5), config=CalibrationConfig(batch_size=8))
    config = prune_config(preset, fwp={"ratio": 0.5, "floor": 0.2, "layer_types": TYPES, **fwp})  # type: ignore[arg-type]
    return prune(network, config, run).model, run


@pytest.mark.parametrize("preset", ["obs", "taylor", "thesis"])
def test_a_network_of_all_kinds_is_pruned_to_its_ratio(network: Network, preset: str) -> None:
    model, _ = pruned_network(network, preset)
    assert {"stem", "grouped", "standard", "up", "row"} <= set(masks_of(model)["fwp"]) <= set(LAYERS)
    report = count_macs(model, (3, 7, 5))
    assert report.macs / report.macs_dense == pytest.approx(0.5, abs=0.12 if preset == "thesis" else 0.03)
    assert {layer.name for layer in report.layers if layer.kept} == set(masks_of(model)["fwp"])


def test_the_refit_of_any_layer_brings_the_outputs_nearer(network: Network) -> None:
    model, run = pruned_network(network)
    x = samples(24).images
    before = (model(x) - network(x)).square().sum()
    done = reconstruct(network, model, run)
    assert set(done.layers) == {name for name in masks_of(model)["fwp"] if name not in COMPUTED}
    assert {left.name: left.reason for left in done.left}.keys() == COMPUTED & set(masks_of(model)["fwp"])
    assert (model(x) - network(x)).square().sum() < 0.5 * before


def test_a_bias_that_the_layers_own_code_adds_stays_as_it_is(network: Network) -> None:
    class Late(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            y = F.conv2d(input, self.weight, None, self.stride, self.padding)
            return y if self.bias is None else y + self.bias[:, None, None]

    network.grouped = Late(4, 4, 1)  # type: ignore[assignment]
    model, run = pruned_network(network)
    left = {skipped.name: skipped.reason for skipped in reconstruct(network, model, run).left}
    assert left["grouped"] == "its forward does not give its product the layer's bias"


def test_a_bundle_gives_it_back(network: Network, tmp_path) -> None:
    model, _ = pruned_network(network)
    bundle = Bundle.of(model, {"input_shape": (3, 7, 5)})
    bundle.save(tmp_path / "bundle")
    again = Bundle.load(tmp_path / "bundle").restore(network)
    x = samples(3).images
    torch.testing.assert_close(again(x), model(x))
    torch.testing.assert_close(model(x), Bundle.of(again, {"input_shape": (3, 7, 5)}).restore(network)(x))


def test_masks_of_blocks_are_for_convolutions_that_compute_as_torch_does() -> None:
    with pytest.raises(UsageError, match="it cannot carry FFP masks: Same replaces the forward of Conv2d"):
        mask(Same(2, 2, 1), ffp_mask=torch.ones(2, 3, 3).bool())
    with pytest.raises(UsageError, match="it cannot carry FFP masks: Linear is not a 2-D convolution"):
        mask(nn.Linear(2, 2), ffp_mask=torch.ones(2, 1, 1).bool())


def test_a_forward_without_a_product_is_named() -> None:
    class Spectral(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return input * self.weight.sum()

    sites, skipped = find_convolutions(nn.Sequential(Spectral(3, 3, 1)), (3, 4, 4))
    assert not sites and skipped[0].reason == "the forward of Spectral computes no conv2d with its weight"
    with pytest.raises(UsageError, match=r"the forward of Spectral computes no conv2d with a weight of \(3, 3, 1, 1\)"):
        mask(Spectral(3, 3, 1), fwp_mask=torch.ones(3, 3, 1, 1).bool())


def test_what_is_compiled_computes_the_same(network: Network) -> None:
    masked = bake(network, {"fwp": masks_for(network)})
    x = samples(2).images
    torch.testing.assert_close(torch.compile(masked, backend="aot_eager")(x), masked(x))
