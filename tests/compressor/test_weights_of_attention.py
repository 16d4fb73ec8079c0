"""Linear layers whose weights another module multiplies with: attention of one's own, torch's, and torch's fast paths."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.calibrate.convolutions import find_convolutions
from fineprune.calibrate.measures import InputSquares
from fineprune.compressor.attention import split
from fineprune.compressor.bake import bake, dense_twin, masks_of
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.config import prune_config
from fineprune.compressor.layers import MaskedLinear
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.reconstruct.run import reconstruct
from support.networks import samples

SHAPE = (3, 7, 5)
READ = ("own.qkv", "own.out", "torchs.self_attn.in_proj", "torchs.self_attn.out_proj")


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


def parameter_of(name: str) -> str:
    """In state dicts, which are those of torch's attention."""
    return f"{name}.weight".replace("in_proj.", "in_proj_")


def pruned(network: nn.Module) -> tuple[nn.Module, CalibrationRun]:
    run = CalibrationRun(source=samples(24), input_shape=SHAPE, config=CalibrationConfig(batch_size=8))
    fwp = {"ratio": 0.5, "floor": 0.2, "layer_types": ("conv2d", "linear")}
    return prune(split(deepcopy(network)), prune_config("obs", fwp=fwp), run).model, run  # type: ignore[arg-type]


def test_layers_whose_weights_others_multiply_with_are_found(network: Network) -> None:
    sites, skipped = find_convolutions(split(deepcopy(network)), SHAPE, ("conv2d", "linear"))
    assert [site.name for site in sites] == ["patches", *READ, "torchs.linear1", "torchs.linear2", "head"]
    assert {site.name: site.placements for site in sites if site.name in READ} == dict.fromkeys(READ, 35)
    assert not skipped
    sites, skipped = find_convolutions(network, SHAPE, ("conv2d", "linear"))
    assert READ[2] not in [site.name for site in sites]
    assert [(s.name, s.reason) for s in skipped] == [("torchs.self_attn", "its projections of queries, keys and values are no layers")]
    assert not any({"forward", "weight", "bias"} & vars(module).keys() for module in network.modules())


@pytest.mark.parametrize("grad", [True, False])
def test_whoever_reads_a_masked_weight_reads_zeros_where_it_is_dropped(network: Network, grad: bool) -> None:
    sites, _ = find_convolutions(split(deepcopy(network)), SHAPE, ("linear",))
    random = torch.Generator().manual_seed(1)
    masks = {site.name: torch.rand(site.weight_shape, generator=random) < 0.5 for site in sites}
    masked, expected, x = bake(network, {"fwp": masks}), deepcopy(network), samples(3).images
    for name, kept in masks.items():
        expected.get_parameter(parameter_of(name)).data *= kept[:, :, 0, 0]
    with torch.set_grad_enabled(grad):  # without gradients torch's encoder layer reads the weights of all its layers
        torch.testing.assert_close(masked(x), expected(x))
        assert (masked(x) - network(x)).abs().max() > 0.01
        twin = dense_twin(masked)
        torch.testing.assert_close(twin(x), expected(x))
    assert {type(module) for module in twin.modules()} == {type(module) for module in network.modules()}
    assert twin.state_dict().keys() == expected.state_dict().keys()
    torch.testing.assert_close(torch.compile(masked, backend="aot_eager")(x), expected(x))


@pytest.mark.parametrize("preset", ["thesis", "taylor", "obs"])
def test_blocks_are_measured_where_a_layer_can_drop_them(network: Network, preset: str) -> None:
    """The projection has other maps for other batches, which says nothing of a layer without masks of blocks."""
    run = CalibrationRun(source=samples(6), input_shape=SHAPE, config=CalibrationConfig(batch_size=4))
    config = prune_config(preset, ffp={"ratio": 0.3}, fwp={"ratio": 0.3, "layer_types": ("conv2d", "linear")})
    masks = masks_of(prune(split(deepcopy(network)), config, run).model)  # type: ignore[arg-type]
    assert set(masks["ffp"]) == {"patches"} and READ[2] in masks["fwp"]


def test_moments_of_a_projection_are_those_of_all_tokens(network: Network) -> None:
    images, run = samples(24).images, CalibrationRun(source=samples(24), input_shape=SHAPE, config=CalibrationConfig(batch_size=8))
    found = run.collect(split(deepcopy(network)), InputSquares(), ("linear",)).layers[READ[2]]["moments"]  # type: ignore[arg-type]
    with torch.no_grad():
        tokens = network.own(network.patches(images).flatten(2).transpose(1, 2)).reshape(-1, 4).double()
    torch.testing.assert_close(found[0, 0], tokens.T @ tokens, rtol=1e-5, atol=1e-4)


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
    done = reconstruct(split(deepcopy(network)), model, run)
    assert {left.name: left.reason for left in done.left} == {"own.qkv": "its forward does not give its product the layer's bias"}
    assert set(done.layers) == {name for name in masks_of(model)["fwp"] if name != "own.qkv"}
    assert (model(x) - network(x)).square().sum() < 0.6 * before
    Bundle.of(model, {"input_shape": SHAPE}).save(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    torch.testing.assert_close(bundle.restore(network)(x), model(x))
    assert bundle.weights.keys() == network.state_dict().keys()
    for name in READ:
        assert not bundle.weights[parameter_of(name)][~bundle.masks["fwp"][name][:, :, 0, 0]].any()


def test_attention_of_several_inputs_keeps_its_projection(network: Network) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 4, 1)
            self.other = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True)
            self.same = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens, pixels = (t.flatten(2).transpose(1, 2) for t in (self.patches(x), x))
            tokens = self.other(tokens, pixels, pixels)[0]
            return self.same(tokens, 2 * tokens, tokens)[0]

    sites, skipped = find_convolutions(split(Cross()), SHAPE, ("linear",))
    assert [site.name for site in sites] == ["other.out_proj", "same.out_proj"]
    assert {"other": "its projections of queries, keys and values are no layers"}.items() <= {s.name: s.reason for s in skipped}.items()
    assert {s.name for s in skipped} == {"patches", "other", "same.in_proj"}


def test_a_checkpoint_fits_either_form(network: Network) -> None:
    theirs, x = split(deepcopy(network)), samples(2).images
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    network.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(network(x), theirs(x))
    nn.init.ones_(network.torchs.self_attn.in_proj_weight)
    theirs.load_state_dict(network.state_dict())
    torch.testing.assert_close(deepcopy(theirs)(x), network(x))
    state = network.state_dict()
    del state["torchs.self_attn.in_proj_bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        theirs.load_state_dict(state)
