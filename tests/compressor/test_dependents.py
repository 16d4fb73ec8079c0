"""Channels that go with dropped filters: found through everything that lies between layers, and counted as the smaller network counts."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fineprune.calibrate.convolutions import find_convolutions
from fineprune.compressor.config import prune_config
from fineprune.compressor.dependents import dead_channels
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, Pruned, prune
from fineprune.models.zoo import ModelSpec, build
from support.networks import samples

SHAPE = (3, 8, 8)
BOTH = ("conv2d", "linear")


def dropping(layer: nn.Module, *filters: int) -> Tensor:
    """A mask without these filters."""
    kept = torch.ones(layer.weight.shape, dtype=torch.bool)  # type: ignore[arg-type]
    kept[list(filters)] = False
    return kept


class Joins(nn.Module):
    """A sum, a join, a depthwise layer, channels that are shuffled and split, a constant of the network's own, and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.summed, self.joined = nn.Conv2d(4, 4, 1), nn.Conv2d(9, 6, 1)
            self.depthwise, self.pointwise = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)
            self.head = nn.Linear(2 * 3 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm(self.a(x)).relu(), nn.functional.hardswish(self.b(x))
        both = torch.cat([self.summed(a + b), b, torch.ones_like(x[:, :1])], 1)
        deep = self.depthwise(nn.functional.max_pool2d(self.joined(both).sigmoid(), 2, padding=1))
        shuffled = deep.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
        return self.head(self.pointwise(shuffled).tanh().flatten(1))


def test_what_reads_dropped_filters_alone_is_dead_whatever_lies_between() -> None:
    model = Joins()
    sites, _ = find_convolutions(model, SHAPE, BOTH)

    def dead(**masks: Tensor) -> dict[str, list[int]]:
        found = dead_channels(model, sites, SHAPE, masks)
        return {name: channels.nonzero().flatten().tolist() for name, channels in found.items()}

    assert dead() == {}, "the constant channel is the network's own"
    assert dead(a=dropping(model.a, 1, 2)) == {}, "sums keep what one summand keeps"
    both = {"a": dropping(model.a, 1, 2), "b": dropping(model.b, 0, 1)}
    assert dead(**both) == {"summed": [1], "joined": [4, 5]}
    deep = dead(joined=dropping(model.joined, 0, 4))
    assert deep == {"depthwise": [0, 4], "pointwise": [0, 3]}, "shuffled 0 3 1 4 2 5"
    assert dead(pointwise=dropping(model.pointwise, 1)) == {"head": [*range(9, 18)]}
    one_left = dropping(model.summed, 0, 1, 2, 3)
    one_left[3, 1] = True
    assert dead(summed=one_left, **both)["joined"] == [0, 1, 2, 3, 4, 5], "filter 3 reads a dead channel alone"


@pytest.mark.parametrize(
    "joined", [lambda a, b: torch.where(a > 0, a, b), torch.fmax, lambda a, b: (a > 0).float() + b], ids=["where", "fmax", "compared"]
)
@pytest.mark.parametrize("gone", ["a", "b"])
def test_what_loses_nan_keeps_what_the_other_gives(joined: Callable[[Tensor, Tensor], Tensor], gone: str) -> None:
    class Chooses(Joins):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.summed(joined(self.a(x), self.b(x)))
            return y

    model = Chooses()
    sites, _ = find_convolutions(model, SHAPE, BOTH)
    layer = model.get_submodule(gone)
    assert dead_channels(model, sites, SHAPE, {gone: dropping(layer, 1, 2)}) == {}
    both = {name: dropping(model.get_submodule(name), 1) for name in ("a", "b")}
    found = dead_channels(model, sites, SHAPE, both)
    assert found.keys() == {"summed"} and found["summed"].tolist() == [False, True, False, False]


def test_networks_that_cannot_be_asked_have_no_dead_channels() -> None:
    class Asks(Joins):
        def forward(self, x: Tensor) -> Tensor:
            if x.isnan().any():
                raise ValueError("broken sensor")
            return super().forward(x)

    model = Asks()
    sites, _ = find_convolutions(model, SHAPE, BOTH)
    assert dead_channels(model, sites, SHAPE, {"joined": dropping(model.joined, 0)}) == {}


def brute_force(pruned: Pruned) -> int:
    """Multiply-adds, one by one: a weight that is kept meets a block that is kept, in a channel that data reach."""
    sites, _ = find_convolutions(pruned.model, SHAPE, BOTH)
    total = 0
    for site in sites:
        weights = pruned.masks["fwp"].get(site.name, torch.ones(site.weight_shape, dtype=torch.bool)).numpy()
        blocks = pruned.masks["ffp"].get(site.name, torch.ones(site.in_channels, *site.output_size, dtype=torch.bool)).numpy()
        filters, per_group, rows, columns = site.weight_shape
        for f, c, u, v in product(range(filters), range(per_group), range(rows), range(columns)):
            if weights[f, c, u, v]:
                total += sum(blocks[f // (filters // site.groups) * per_group + c].ravel().tolist())
    return total


@pytest.mark.parametrize(
    ("method", "scope"),
    [*(("fpgm", scope) for scope in ("channel", "layer", "position", "global")), *((method, "global") for method in ("2:4", "lamp"))],
)
def test_blocks_on_top_of_a_method_are_counted_jointly(method: str, scope: str) -> None:
    """Multiply-adds under both masks are those of a count one by one, and 15 % fewer than without the blocks."""
    model = build(ModelSpec(name="resnet8", args={"width": 4}), seed=0)
    run = CalibrationRun(source=samples(6, shape=SHAPE), input_shape=SHAPE)
    rate = {"criterion": method, "ratio": 0.5 if method == "2:4" else 0.4}
    alone = prune(model, prune_config(fwp=rate), run)
    both = prune(model, prune_config(fwp=rate, ffp={"criterion": "random", "scope": scope, "ratio": 0.15, "floor": 0.0}), run)
    assert all(torch.equal(mask, both.masks["fwp"][name]) for name, mask in alone.masks["fwp"].items()), "the method goes first"
    counts = [count_macs(pruned.model, SHAPE) for pruned in (alone, both)]
    assert [count.macs for count in counts] == [brute_force(pruned) for pruned in (alone, both)]
    rounding = 5e-3 if scope == "global" else 0.03  # maps of four positions lose one
    assert counts[1].conv_macs / counts[0].conv_macs == pytest.approx(0.85, abs=rounding)


def test_a_chain_costs_what_the_smaller_network_costs() -> None:
    model = build(ModelSpec(name="vgg13", args={}), seed=0)
    run = CalibrationRun(source=samples(2, shape=(3, 32, 32)), input_shape=(3, 32, 32))
    pruned = prune(model, prune_config(fwp={"criterion": "l1-filters", "ratio": 0.4}), run)
    widths, expected, size, channels = [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"], 0, 32, 3
    for width in widths:
        if width == "M":
            size //= 2
            continue
        kept = int(width) - int(0.4 * int(width))
        expected, channels = expected + 9 * channels * kept * size * size, kept
    assert count_macs(pruned.model, (3, 32, 32)).macs == expected + channels * 10
    dead = {name: int((~mask.flatten(2).any(2).any(0)).sum()) for name, mask in pruned.masks["fwp"].items()}
    assert np.array_equal(list(dead.values())[1:3], [25, 25]) and dead["classifier"] == 204
