"""Linear layers whose weights another module multiplies with: attention of one's own, torch's, and torch's fast paths."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.calibrate.convolutions import find_convolutions
from fineprune.compressor.bake import bake, dense_twin, masks_of
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.config import prune_config
from fineprune.compressor.layers import MaskedLinear
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.reconstruct.run import reconstruct
from support.networks import samples

SHAPE = (3, 7, 5)
READ = ("own.qkv", "own.out", "torchs.self_attn.out_proj")


class Attention(nn.Module):
    """It adds no bias to keys, as Swin's second version."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.qkv.bias.clone()
        bias[4:8] = 0
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, -1)
        return x + F.linear(torch.softmax(q @ k.transpose(1, 2), -1) @ v, weight=self.out.weight, bias=self.out.bias)


class Network(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.patches, self.own = nn.Conv2d(3, 4, 1), Attention()
        self.torchs = nn.TransformerEncoderLayer(4, 2, 6, batch_first=batch_first)
        self.head = nn.Linear(4, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.patches(x).flatten(2).transpose(1, 2))
        x = self.torchs(x) if self.batch_first else self.torchs(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x.mean(1))


@pytest.fixture(params=[True, False])
def network(request: pytest.FixtureRequest) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Network(request.param)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def pruned(network: nn.Module) -> tuple[nn.Module, CalibrationRun]:
    run = CalibrationRun(source=samples(24), input_shape=SHAPE, config=CalibrationConfig(batch_size=8))
    fwp = {"ratio": 0.5, "floor": 0.2, "layer_types": ("conv2d", "linear")}
    return prune(network, prune_config("obs", fwp=fwp), run).model, run  # type: ignore[arg-type]


def test_layers_whose_weights_others_multiply_with_are_found(network: Network) -> None:
    sites, skipped = find_convolutions(network, SHAPE, ("conv2d", "linear"))
    assert [site.name for site in sites] == ["patches", *READ, "torchs.linear1", "torchs.linear2", "head"]
    assert {site.name: site.placements for site in sites if site.name in READ} == dict.fromkeys(READ, 35)
    assert not skipped
    assert not any({"forward", "weight", "bias"} & vars(module).keys() for module in network.modules())


@pytest.mark.parametrize("grad", [True, False])
def test_whoever_reads_a_masked_weight_reads_zeros_where_it_is_dropped(network: Network, grad: bool) -> None:
    sites, _ = find_convolutions(network, SHAPE, ("linear",))
    random = torch.Generator().manual_seed(1)
    masks = {site.name: torch.rand(site.weight_shape, generator=random) < 0.5 for site in sites}
    masked, expected, x = bake(network, {"fwp": masks}), deepcopy(network), samples(3).images
    for name, kept in masks.items():
        expected.get_submodule(name).weight.data *= kept[:, :, 0, 0]  # type: ignore[union-attr, operator]
    with torch.set_grad_enabled(grad):  # without gradients torch's encoder layer reads the weights of all its layers
        torch.testing.assert_close(masked(x), expected(x))
        assert (masked(x) - network(x)).abs().max() > 0.01
        torch.testing.assert_close(dense_twin(masked)(x), expected(x))
    torch.testing.assert_close(torch.compile(masked, backend="aot_eager")(x), expected(x))


def test_an_optimizer_gets_the_parameters(network: Network) -> None:
    model, _ = pruned(network)
    masks, before = masks_of(model)["fwp"], {name: value.clone() for name, value in model.named_parameters()}
    assert set(READ) <= set(masks)
    model(samples(4).images).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name in READ:
        layer, kept = model.get_submodule(name), masks[name][:, :, 0, 0]
        assert isinstance(layer, MaskedLinear) and isinstance(layer.own_weight, nn.Parameter)
        moved = layer.own_weight != before[f"{name}.weight"]
        assert not moved[~kept].any() and moved[kept].any()
        assert not layer.weight[~kept].any()


def test_they_are_counted_refitted_and_kept_as_others(network: Network, tmp_path) -> None:
    model, run = pruned(network)
    report, x = count_macs(model, SHAPE), samples(24).images
    rows = {layer.name: layer for layer in report.layers}
    assert all(rows[name].macs == 35 * int(masks_of(model)["fwp"][name].sum()) for name in READ)
    assert report.macs_dense == count_macs(network, SHAPE).macs_dense
    before = (model(x) - network(x)).square().sum()
    done = reconstruct(network, model, run)
    assert {left.name: left.reason for left in done.left} == {"own.qkv": "its forward does not give its product the layer's bias"}
    assert set(done.layers) == {name for name in masks_of(model)["fwp"] if name != "own.qkv"}
    assert (model(x) - network(x)).square().sum() < 0.6 * before
    Bundle.of(model, {"input_shape": SHAPE}).save(tmp_path / "bundle")
    torch.testing.assert_close(Bundle.load(tmp_path / "bundle").restore(network)(x), model(x))
