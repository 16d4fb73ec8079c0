"""Channels of units: the order only ever gains, finds what was planted, and leaves units alone that a mask has made."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.compressor.clusters import clustered, in_clusters
from fineprune.compressor.config import prune_config
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.ranked import Layer
from fineprune.compressor.selection import layers_of, select
from fineprune.export.exporter import export_onnx
from fineprune.export.parity import check_parity
from fineprune.ops.channel_groups import aligned_order
from support.networks import SHAPE, samples, varied

SITES = [
    ConvSite(name="plain", in_channels=16, out_channels=5, kernel=(3, 2), groups=1, output_size=(5, 3)),
    ConvSite(name="grouped", in_channels=18, out_channels=6, kernel=(2, 3), groups=2, output_size=(3, 5)),
    ConvSite(name="pointwise", in_channels=22, out_channels=7, kernel=(1, 1), groups=1, output_size=(2, 3)),
]
SIZES = {"pair": 2, "quad": 4}


def worth(values: Tensor, size: int, order: list[int]) -> float:
    """Of the formula, unit by unit."""
    units = [order[first : first + size] for first in range(0, len(order), size)]
    return sum(max(0.0, float(sum(values[c, i] for c in unit))) for unit in units for i in range(values.shape[1]))


def anywhere(channels: int) -> Tensor:
    return torch.zeros(channels)


@pytest.mark.parametrize(("channels", "size"), [(12, 2), (12, 4), (10, 4), (3, 2), (3, 4), (1, 4)])
def test_no_change_of_two_places_would_gain(channels: int, size: int) -> None:
    values = torch.randn(channels, 30, generator=torch.Generator().manual_seed(channels), dtype=torch.float64)
    order = clustered(values, size, torch.arange(channels), anywhere(channels)).tolist()
    assert sorted(order) == list(range(channels))
    found = worth(values, size, order)
    assert found > worth(values, size, list(range(channels))) or channels <= size
    for one, other in combinations(range(channels), 2):
        changed = order.copy()
        changed[one], changed[other] = order[other], order[one]
        assert worth(values, size, changed) <= found * (1 + 1e-4)


@pytest.mark.parametrize("size", [2, 4])
def test_planted_units_are_found(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    kept = torch.rand(6, 40, generator=generator) < 0.3
    values = torch.where(kept, 1.0, -0.5).repeat_interleave(size, 0) + 0.3 * torch.randn(6 * size, 40, generator=generator)
    shuffled = torch.randperm(6 * size, generator=generator)
    order = clustered(values[shuffled], size, torch.arange(6 * size), anywhere(6 * size))
    planted = (shuffled[order] // size).view(-1, size)
    assert (planted == planted[:, :1]).all()


def test_channels_that_are_not_alike_stay_apart() -> None:
    values = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    alone = torch.tensor([0, 1] * 6)
    start = alone.argsort(stable=True)
    order = clustered(values, 2, start, alone)
    assert torch.equal(alone[order], alone[start]) and not torch.equal(order, start)


@pytest.mark.parametrize("scope", ["filter", "layer", "global"])
@pytest.mark.parametrize("unit", SIZES)
def test_more_of_the_scores_is_kept(unit: str, scope: str) -> None:
    config = prune_config(fwp={"criterion": "magnitude", "scope": scope, "ratio": 0.6, "unit": unit}).fwp
    generator = torch.Generator().manual_seed(1)
    weights = {s.name: torch.randn(s.out_channels, s.in_channels // s.groups, *s.kernel, generator=generator) for s in SITES}
    layers = layers_of(None, weights, {}, SITES, config)

    def kept(layers: list[Layer]) -> float:
        masks = select(layers, config)
        assert all(aligned_order(mask.numpy(), SIZES[unit]) is not None for mask in masks.values())
        return sum(float((layer.weight.abs() * masks[layer.site.name]).sum()) for layer in layers)

    assert kept(in_clusters(layers, config)) > 1.02 * kept(layers)


@pytest.mark.parametrize("criterion", ["obs", "taylor"])
@pytest.mark.parametrize("unit", SIZES)
def test_a_network_pruned_twice_has_units_of_the_same_channels(unit: str, criterion: str) -> None:
    run = CalibrationRun(source=samples(8, dtype=torch.float64), input_shape=SHAPE)
    settings = {"criterion": criterion, "unit": unit}
    first = prune(varied(), prune_config(fwp={**settings, "ratio": 0.3}), run)
    second = prune(first.model, prune_config(fwp={**settings, "ratio": 0.6}), run)
    for masks in (first.masks["fwp"], second.masks["fwp"]):
        assert all(aligned_order(mask.numpy(), SIZES[unit]) is not None for mask in masks.values())
    if unit == "pair":  # there are too few channels for quads to differ
        orders = [aligned_order(mask.numpy(), 2) for mask in first.masks["fwp"].values()]
        assert any(order is not None and order.tolist() != list(range(len(order))) for order in orders)
    macs = [count_macs(model, SHAPE).macs for model in (varied(), first.model, second.model)]
    assert macs[1] / macs[0] == pytest.approx(0.7, abs=0.06) and macs[2] / macs[0] == pytest.approx(0.4, abs=0.06)


def test_neighbours_where_they_are_asked_for_and_blocks_in_one_list() -> None:
    run = CalibrationRun(source=samples(8, dtype=torch.float64), input_shape=SHAPE)
    by_file = prune(varied(), prune_config(fwp={"ratio": 0.5, "unit": "quad", "order": "file"}), run)
    for mask in by_file.masks["fwp"].values():
        assert all((mask[:, c] == mask[:, c // 4 * 4]).all() for c in range(mask.shape[1]))
    common = prune(varied(), prune_config(ratio=0.5, split="common", fwp={"unit": "quad"}), run)
    assert common.masks["fwp"] and all(aligned_order(mask.numpy(), 4) is not None for mask in common.masks["fwp"].values())


@pytest.mark.parametrize("unit", ["pair", "quad", "row"])
def test_files_of_units_run_in_onnx_runtime_and_the_engine(unit: str, tmp_path: Path) -> None:
    run = CalibrationRun(source=samples(8, dtype=torch.float64), input_shape=SHAPE)
    model = prune(varied(), prune_config(fwp={"criterion": "obs", "ratio": 0.6, "unit": unit}), run).model.float().eval()
    export_onnx(model, SHAPE, tmp_path / "net.onnx")
    report = check_parity(model, tmp_path / "net.onnx", samples(4).images.numpy(), reference_samples=1, engine=True)
    assert report.passed and report.compares("engine")
