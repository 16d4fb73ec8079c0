"""What is ranked: costs are those of the one formula, quads are four channels, and settings hold for every unit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.compressor import criteria
from fineprune.compressor.config import FFPConfig, FWPConfig
from fineprune.compressor.criterion import Criterion, Layer
from fineprune.compressor.ranking import keep_count
from fineprune.compressor.selection import layers_of, select
from fineprune.compressor.units import BLOCK, FILTER, QUAD, TAP, NOfM, Unit
from fineprune.ops.multiply_adds import multiply_adds

PLAIN = ConvSite(name="plain", in_channels=7, out_channels=5, kernel=(3, 2), groups=1, output_size=(5, 3))
GROUPED = ConvSite(name="grouped", in_channels=12, out_channels=6, kernel=(2, 3), groups=2, output_size=(3, 5))
POINTWISE = ConvSite(name="pointwise", in_channels=10, out_channels=7, kernel=(1, 1), groups=1, output_size=(2, 3))
SITES = [PLAIN, GROUPED, POINTWISE]


class QuadMagnitude(Criterion):
    """A method of quads, as a file in criteria/ declares one."""

    name, summary, unit, comparable, per_cost = "quads", "sum of the magnitudes of a quad", QUAD, True, True

    def scores(self, layer: Layer) -> Tensor:
        return QUAD.total(layer.weight.double().abs())


@pytest.fixture
def quads(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(criteria._METHODS, ("fwp", QuadMagnitude.name), QuadMagnitude())
    return QuadMagnitude.name


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {s.name: torch.randn(s.out_channels, s.in_channels // s.groups, *s.kernel, generator=generator) for s in SITES}


def blocks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {s.name: torch.rand(s.in_channels, *s.output_size, generator=generator) < 0.6 for s in SITES}


def naive(weight: np.ndarray, kept: int) -> np.ndarray:
    """The mask [F,C,kh,kw] of the `kept` quads of each filter that are largest in sum, one after the other."""
    mask = np.zeros(weight.shape, bool)
    filters, channels, rows, columns = weight.shape
    for f in range(filters):
        places = [(first, u, v) for first in range(0, channels, 4) for u in range(rows) for v in range(columns)]
        sums = {at: np.abs(weight[f, at[0] : at[0] + 4, at[1], at[2]]).sum() / min(4, channels - at[0]) for at in places}
        for first, u, v in sorted(places, key=lambda at: -sums[at])[:kept]:
            mask[f, first : first + 4, u, v] = True
    return mask


def test_four_channels_of_one_tap_go_together(quads: str) -> None:
    config = FWPConfig(criterion=quads, scope="filter", ratio=0.4)
    masks = select(layers_of(None, weights(), {}, SITES, config), config)
    for s in SITES:
        weight = weights()[s.name].double().numpy()
        kept = keep_count(-(-weight.shape[1] // 4) * s.taps, 0.4)
        assert (masks[s.name].numpy() == naive(weight, kept)).all(), s.name


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_quads_share_a_list_and_count_what_is_dropped_already(quads: str, scope: str) -> None:
    config = FWPConfig(criterion=quads, scope=scope, ratio=0.5, floor=0.0)  # type: ignore[arg-type]
    masks = select(layers_of(None, weights(), blocks(), SITES, config), config, outputs=("plain",))
    totals = {s.name: int(QUAD.total(masks[s.name].long()).sum()) for s in SITES}
    if scope == "layer":
        assert all(QUAD.alive(masks[s.name], None).sum() == keep_count(QUAD.total(masks[s.name].long()).numel(), 0.5) for s in SITES)  # type: ignore[arg-type]
    assert masks["plain"].flatten(1).any(1).all(), "every filter of an output layer keeps something"
    pruned = {name: weight * masks[name] for name, weight in weights().items()}
    again = select(layers_of(None, pruned, blocks(), SITES, config), config, carried=masks)
    assert {s.name: int(QUAD.total(again[s.name].long()).sum()) for s in SITES} == totals, "0.5 twice is 0.5"


@pytest.mark.parametrize(
    ("unit", "options"),
    [
        (BLOCK, {}),
        *((TAP, {"scope": "layer", "share": share, "lanes": 2, "criterion": "magnitude"}) for share in ("filter", "group", "channel")),
        (QUAD, {"scope": "layer"}),
        (FILTER, {"scope": "layer", "criterion": "fpgm"}),
        (NOfM(2, 4), {"scope": "layer", "criterion": "2:4", "ratio": 0.5}),
    ],
    ids=lambda value: getattr(value, "name", "") if isinstance(value, Unit) else "-".join(map(str, value.values())),
)
@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_what_units_cost_is_what_is_counted(site: ConvSite, unit: Unit, options: dict) -> None:
    config = FFPConfig() if unit is BLOCK else FWPConfig(**options)
    under = None if unit is BLOCK else blocks()[site.name]
    layer = Layer(site=site, config=config, weight=weights()[site.name], blocks=under)
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


def test_a_position_is_judged_by_the_blocks_that_it_still_has() -> None:
    config = FFPConfig(criterion="l2", scope="position", ratio=0.5)
    layer = Layer(site=PLAIN, config=config, weight=torch.ones(1))
    scores = torch.tensor([[[9.0, 1.0, -torch.inf, -torch.inf]], [[-torch.inf, 1.0, 5.0, -torch.inf]]])
    kept = BLOCK.keep(scores, torch.tensor([[[0.0, 1.0, 0.0, 2.0]]]).expand(2, 1, 4), 0.5, layer)
    assert kept[0, 0].tolist() == [True, False, True, False] and torch.equal(kept[0], kept[1])
