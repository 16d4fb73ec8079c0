"""Blocks and weights in one list: what is left is counted with their overlap, and nothing better was dropped for something worse."""

import pytest
import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.compressor.config import FFPConfig, FWPConfig
from fineprune.compressor.ranked import Layer
from fineprune.compressor.selection import select_common

PLAIN = ConvSite(name="plain", in_channels=7, out_channels=5, kernel=(3, 2), groups=1, output_size=(5, 3))
GROUPED = ConvSite(name="grouped", in_channels=12, out_channels=6, kernel=(2, 3), groups=2, output_size=(3, 5))


def lists(weight_of_weights: float = 1.0) -> tuple[list[Layer], list[Layer]]:
    generator = torch.Generator().manual_seed(3)
    blocks, weights = FFPConfig(floor=0.0), FWPConfig(floor=0.0)
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
