"""Blocks and weights in one list: what is left is counted with their overlap, and nothing better was dropped for something worse."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.calibrate.convolutions import ConvSite, find_convolutions
from fineprune.calibrate.layers import layer_at
from fineprune.calibrate.statistics import Statistics, fingerprint
from fineprune.common.errors import UsageError
from fineprune.compressor.bake import bake
from fineprune.compressor.config import FFPConfig, FWPConfig, PruneConfig, prune_config
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.ranked import Layer
from fineprune.compressor.selection import select_common
from support.fakes import FakeSplit
from support.networks import SHAPE, samples, varied

PLAIN = ConvSite(name="plain", in_channels=7, out_channels=5, kernel=(3, 2), groups=1, output_size=(5, 3))
GROUPED = ConvSite(name="grouped", in_channels=12, out_channels=6, kernel=(2, 3), groups=2, output_size=(3, 5))


def lists(weight_of_weights: float = 1.0, floor: float = 0.0) -> tuple[list[Layer], list[Layer]]:
    generator = torch.Generator().manual_seed(3)
    blocks, weights = FFPConfig(floor=floor), FWPConfig(floor=floor)
    found: tuple[list[Layer], list[Layer]] = ([], [])
    for site in (PLAIN, GROUPED):
        weight = torch.randn(site.out_channels, site.in_channels // site.groups, *site.kernel, generator=generator)
        of_blocks = torch.rand(site.in_channels, *site.output_size, generator=generator, dtype=torch.float64) * site.block_macs
        of_weights = torch.rand(weight.shape, generator=generator, dtype=torch.float64) * site.positions * weight_of_weights
        found[0].append(Layer(site=site, config=blocks, weight=weight, sums={"taylor": of_blocks}))
        found[1].append(Layer(site=site, config=weights, weight=weight, sums={"taylor": of_weights}))
    return found


def naive_left(masks: dict[str, dict[str, Tensor]]) -> int:
    """Multiply-adds, one filter, channel, tap and position after the other."""
    left = 0
    for site in (PLAIN, GROUPED):
        per_group, filters = site.in_channels // site.groups, site.out_channels // site.groups
        blocks = masks["ffp"].get(site.name, torch.ones(site.in_channels, *site.output_size))
        weights = masks["fwp"].get(site.name, torch.ones(site.out_channels, per_group, *site.kernel))
        for f in range(site.out_channels):
            for k in range(per_group):
                for used in blocks[f // filters * per_group + k].flatten().tolist():
                    left += sum(bool(used) and bool(tap) for tap in weights[f, k].flatten().tolist())
    return left


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.72])
def test_what_is_left_is_exactly_within_the_budget(ratio: float) -> None:
    dense = naive_left({"ffp": {}, "fwp": {}})
    left = naive_left(select_common(lists(), ratio))
    assert (1 - ratio) * dense - max(PLAIN.positions, PLAIN.block_macs) < left <= (1 - ratio) * dense + 1e-6


def test_every_value_kept_is_at_least_every_value_dropped() -> None:
    masks, layers = select_common(lists(), 0.5), lists()
    kept, dropped = [], []
    for kind, of in (("ffp", layers[0]), ("fwp", layers[1])):
        for layer in of:
            value = layer.sum("taylor") / (layer.site.block_macs if kind == "ffp" else layer.site.positions)
            mask = masks[kind][layer.site.name]
            kept.append(value[mask])
            dropped.append(value[~mask])
    assert torch.cat(kept).min() >= torch.cat(dropped).max()


def test_the_list_decides_each_kinds_share() -> None:
    assert not select_common(lists(1e6), 0.3)["fwp"], "weights are worth so much that blocks alone go"
    assert not select_common(lists(1e-6), 0.3)["ffp"]


@pytest.mark.parametrize("floor", [0.01, 0.3])
def test_every_layer_keeps_its_floor_of_both(floor: float) -> None:
    masks = select_common(lists(floor=floor), 0.9999)
    for kind, of in zip(("ffp", "fwp"), lists(), strict=True):
        for layer in of:
            mask, value = masks[kind][layer.site.name], layer.sum("taylor")
            least = max(1, round(floor * mask.numel()))
            assert mask.flatten()[value.flatten().argsort(descending=True)[:least]].all()


def test_no_filter_of_an_output_layer_is_cut_off() -> None:
    lost = lists()
    lost[1][0].sum("taylor")[2] *= 1e-9
    assert not select_common(lost, 0.8)["fwp"]["plain"].flatten(1).any(1).all()
    assert select_common(lost, 0.8, outputs=("plain",))["fwp"]["plain"].flatten(1).any(1).all()


def test_what_masks_dropped_before_goes_first_and_counts() -> None:
    first = select_common(lists(), 0.3)
    second = select_common(lists(), 0.6, carried=first)
    dense = naive_left({"ffp": {}, "fwp": {}})
    assert 0.4 * dense - max(PLAIN.positions, PLAIN.block_macs) < naive_left(second) <= 0.4 * dense + 1e-6, "0.3 and then 0.6 is 0.6 in all"
    for kind, of in first.items():
        assert all(not second[kind][name][~mask].any() for name, mask in of.items())


def test_the_floor_is_of_what_masks_left_before() -> None:
    value = lists()[1][0].sum("taylor")
    first = {"fwp": {"plain": value < value.flatten().quantile(0.6)}}  # the best that there was
    masks = select_common(lists(floor=0.3), 0.9999, carried=first)
    assert int(masks["fwp"]["plain"].sum()) >= round(0.3 * value.numel())


class Single(nn.Module):
    """One weight and one block, which are the same product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False, dtype=torch.float64)
        self.head = nn.Linear(1, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize(("criterion", "more"), [("taylor", 0.0), ("obs", 0.01)])
def test_a_block_that_is_a_weight_is_worth_as_much(criterion: str, more: float) -> None:
    """Up to the dampening of H, which makes weights of `obs` a hundredth dearer."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    source = FakeSplit(torch.randn(9, 1, 1, 1, generator=generator, dtype=torch.float64), torch.arange(9) % 3)
    model, run = Single(), CalibrationRun(source=source, input_shape=(1, 1, 1))
    sites, _ = find_convolutions(model, run.input_shape)
    worth = []
    for config in (FFPConfig(criterion=criterion), FWPConfig(criterion=criterion)):
        measure = config.method.measure(config, sites)
        assert measure is not None
        sums = run.collect(model, measure).layers["conv"]
        worth.append(config.method.scores(Layer(site=sites[0], config=config, weight=layer_at(model, sites[0]).weight, sums=sums)).item())
    assert worth[0] > 0 and worth[1] == pytest.approx(worth[0] * (1 + more))


@pytest.mark.parametrize("criterion", ["taylor", "obs"])
def test_pruning_measures_both_on_the_dense_network(criterion: str, tmp_path: Path) -> None:
    config = prune_config(ratio=0.4, split="common", ffp={"criterion": criterion}, fwp={"criterion": criterion})
    run = CalibrationRun(source=samples(8, dtype=torch.float64), input_shape=SHAPE, config=CalibrationConfig(batch_size=4), folder=tmp_path)
    pruned, dense = prune(varied(), config, run), count_macs(varied(), SHAPE)
    kept = count_macs(pruned.model, SHAPE)
    assert kept.conv_macs / dense.conv_macs == pytest.approx(0.6, abs=0.01) and kept.conv_macs <= 0.6 * dense.conv_macs
    found = {kind: Statistics.load(tmp_path / kind) for kind in ("blocks", "weights")}
    assert {of.settings["network"] for of in found.values()} == {fingerprint(varied())}
    again = prune(varied(), config, CalibrationRun(source=run.source, input_shape=SHAPE), statistics=found)
    assert all(torch.equal(mask, again.masks[kind][name]) for kind, of in pruned.masks.items() for name, mask in of.items())
    more = prune(pruned.model, prune_config(ratio=0.6, split="common", ffp={"criterion": criterion}, fwp={"criterion": criterion}), run)
    assert count_macs(more.model, SHAPE).conv_macs / dense.conv_macs == pytest.approx(0.4, abs=0.01)


def test_groups_of_filters_share_their_weights_in_it_too() -> None:
    run = CalibrationRun(source=samples(8, dtype=torch.float64), input_shape=SHAPE)
    pruned = prune(bake(varied(), {}), prune_config(ratio=0.4, split="common", fwp={"share": "group", "lanes": 2}), run)
    assert pruned.groups
    for name, sets in pruned.groups.items():
        for number in sets.unique():
            members = pruned.masks["fwp"][name][sets == number]
            assert (members == members[:1]).all()


def test_settings_that_no_list_can_hold_are_named() -> None:
    one = "prune_split 'common' divides one ratio: give prune, and no ratios of FFP, FWP or single layers"
    wrong = [
        ({}, one),
        ({"ratio": 0.4, "fwp": {"per_layer": {"stem": 0.2}}}, one),
        ({"ratio": 0.4, "preset": "thesis"}, "ranks all layers in one list: FFP and FWP need scope 'global', got 'channel' and 'kernel'"),
        (
            {"ratio": 0.4, "fwp": {"criterion": "obs"}},
            "the FFP criterion 'taylor' and the FWP criterion 'obs' measure different things; give FFP 'obs' with FWP 'obc', 'obs'",
        ),
        ({"ratio": 0.4, "fwp": {"criterion": "magnitude"}}, "the FFP criterion 'taylor' and the FWP criterion 'magnitude' measure"),
        ({"ratio": 1.4}, "prune ratio must be a pruned fraction in [0, 1), got 1.4"),
    ]
    for options, said in wrong:
        with pytest.raises(UsageError) as error:
            prune_config(**{"split": "common", **options})  # type: ignore[arg-type]
        assert said in str(error.value)
    with pytest.raises(UsageError, match="unknown prune_split 'half'; choose one of preset, common"):
        prune_config(ratio=0.4, split="half")


def test_settings_say_it_only_where_it_is_asked_for() -> None:
    config = prune_config(ratio=0.4, split="common")
    assert config.to_json()["common"] == 0.4 and config.asked == {"ffp": 0.0, "fwp": 0.0, "common": 0.4}
    assert prune_config(ratio=0.4).to_json().keys() == {"ffp", "fwp"} == prune_config(ratio=0.4).asked.keys()
    assert prune_config(ratio=0.0, split="common") == PruneConfig()
