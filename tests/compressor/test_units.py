"""What is ranked: costs are those of the one formula, units are dropped whole, and settings hold for every unit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.common.errors import UsageError
from fineprune.compressor.config import FFPConfig, FWPConfig
from fineprune.compressor.ranked import Layer
from fineprune.compressor.ranking import keep_count
from fineprune.compressor.selection import layers_of, select
from fineprune.compressor.units import BLOCK, FILTER, TAP, TAPS, NOfM, Unit
from fineprune.ops.multiply_adds import multiply_adds
from support.units import UNITS, members

PLAIN = ConvSite(name="plain", in_channels=7, out_channels=5, kernel=(3, 2), groups=1, output_size=(5, 3))
GROUPED = ConvSite(name="grouped", in_channels=12, out_channels=6, kernel=(2, 3), groups=2, output_size=(3, 5))
POINTWISE = ConvSite(name="pointwise", in_channels=10, out_channels=7, kernel=(1, 1), groups=1, output_size=(2, 3))
SITES = [PLAIN, GROUPED, POINTWISE]


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {s.name: torch.randn(s.out_channels, s.in_channels // s.groups, *s.kernel, generator=generator) for s in SITES}


def blocks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {s.name: torch.rand(s.in_channels, *s.output_size, generator=generator) < 0.6 for s in SITES}


def shuffled(channels: int) -> Tensor:
    return torch.randperm(channels, generator=torch.Generator().manual_seed(channels))


def naive(weight: np.ndarray, ratio: float, unit: str, order: list[int]) -> np.ndarray:
    """The mask [F,C,kh,kw] of the units of each filter that are largest in sum, one after the other."""
    mask = np.zeros(weight.shape, bool)
    filters, channels, *kernel = weight.shape
    for f in range(filters):
        units = list(members(unit, channels, kernel, order).values())
        units.sort(key=lambda of: -sum(abs(weight[(f, *at)]) for at in of))
        for at in [at for of in units[: keep_count(len(units), ratio)] for at in of]:
            mask[(f, *at)] = True
    return mask


@pytest.mark.parametrize("unit", UNITS)
def test_weights_of_a_unit_go_together(unit: str) -> None:
    config = FWPConfig(criterion="magnitude", scope="filter", ratio=0.4, unit=unit)  # type: ignore[arg-type]
    layers = [replace(layer, order=shuffled(layer.weight.shape[1])) for layer in layers_of(None, weights(), {}, SITES, config)]
    masks = select(layers, config)
    for layer in layers:
        expected = naive(layer.weight.double().numpy(), 0.4, unit, layer.order.tolist())  # type: ignore[union-attr]
        assert (masks[layer.site.name].numpy() == expected).all(), layer.site.name


@pytest.mark.parametrize("share", ["filter", "channel"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("unit", UNITS)
def test_units_share_a_list_and_count_what_is_dropped_already(unit: str, scope: str, share: str) -> None:
    config = FWPConfig(criterion="magnitude", scope=scope, ratio=0.5, floor=0.0, unit=unit, share=share)  # type: ignore[arg-type]

    def units(layer: Layer, masks: dict[str, Tensor]) -> Tensor:
        return config.ranked.alive(masks.get(layer.site.name, torch.ones_like(layer.weight)), layer)

    layers = {layer.site.name: layer for layer in layers_of(None, weights(), {"ffp": blocks()}, SITES, config)}
    masks = select(list(layers.values()), config, outputs=("plain",))
    totals = {name: int(units(layer, masks).sum()) for name, layer in layers.items()}
    if scope == "layer":
        assert all(totals[name] == keep_count(units(layer, masks).numel(), 0.5) for name, layer in layers.items())
    assert masks["plain"].flatten(1).any(1).all(), "every filter of an output layer keeps something"
    pruned = {name: weight * masks.get(name, torch.ones(1)) for name, weight in weights().items()}
    again = select(layers_of(None, pruned, {"ffp": blocks()}, SITES, config), config, carried=masks)
    assert {name: int(units(layer, again).sum()) for name, layer in layers.items()} == totals, "0.5 twice is 0.5"


@pytest.mark.parametrize(
    ("unit", "options"),
    [
        (BLOCK, {}),
        *((TAP, {"scope": "layer", "share": share, "lanes": 2, "criterion": "magnitude"}) for share in ("filter", "group", "channel")),
        *((TAPS[unit], {"scope": "layer", "share": "channel", "unit": unit}) for unit in UNITS),
        *((TAPS[unit], {"scope": "layer", "unit": unit}) for unit in UNITS),
        (FILTER, {"scope": "layer", "criterion": "l1-filters"}),
        (NOfM(2, 4), {"scope": "layer", "criterion": "2:4", "ratio": 0.5}),
    ],
    ids=lambda value: getattr(value, "name", "") if isinstance(value, Unit) else "-".join(map(str, value.values())),
)
@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_what_units_cost_is_what_is_counted(site: ConvSite, unit: Unit, options: dict) -> None:
    config = FFPConfig() if unit is BLOCK else FWPConfig(**options)
    under = None if unit is BLOCK else blocks()[site.name]
    weight = weights()[site.name]
    layer = Layer(site=site, config=config, weight=weight, blocks=under, order=shuffled(weight.shape[1]))
    costs = unit.costs(layer)
    kept = torch.rand(costs.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    mask = unit.mask(kept, layer).numpy()
    masks = {"blocks": mask} if under is None else {"blocks": under.numpy(), "weights": mask}
    assert int(costs[kept].sum()) == multiply_adds(layer.weight.shape, site.positions, site.groups, **masks)
    assert torch.equal(unit.alive(torch.from_numpy(mask), layer), kept)


@pytest.mark.parametrize(("criterion", "ratio"), [("fpgm", 0.4), ("2:4", 0.5), ("magnitude", 0.4)])
def test_pointwise_layers_can_be_exempt_whatever_is_ranked(criterion: str, ratio: float) -> None:
    config = FWPConfig(criterion=criterion, scope="layer", ratio=ratio, pointwise="exempt")
    assert [layer.site.name for layer in layers_of(None, weights(), {}, SITES, config)] == ["plain", "grouped"]


@pytest.mark.parametrize(("criterion", "ranks"), [("fpgm", "filters"), ("2:4", "group of 4 weights")])
def test_units_are_made_of_taps(criterion: str, ranks: str) -> None:
    with pytest.raises(UsageError, match=f"FWP unit='quad' is made of taps, and '{criterion}' ranks {ranks}; leave it out"):
        FWPConfig(criterion=criterion, scope="layer", unit="quad")


def test_a_position_is_judged_by_the_blocks_that_it_still_has() -> None:
    config = FFPConfig(criterion="l2", scope="position", ratio=0.5)
    layer = Layer(site=PLAIN, config=config, weight=torch.ones(1))
    scores = torch.tensor([[[9.0, 1.0, -torch.inf, -torch.inf]], [[-torch.inf, 1.0, 5.0, -torch.inf]]])
    kept = BLOCK.keep(scores, torch.tensor([[[0.0, 1.0, 0.0, 2.0]]]).expand(2, 1, 4), 0.5, layer)
    assert kept[0, 0].tolist() == [True, False, True, False] and torch.equal(kept[0], kept[1])
