"""Block-diagonal Fisher scores against loops of their formulas: gradients by autograd, matrices inverted one block at a time."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from fineprune.calibrate import fisher
from fineprune.calibrate.collect import CalibrationConfig, collect
from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.fisher import block_limit, fisher_blocks, from_blocks, to_blocks
from fineprune.calibrate.measures import Fisher
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import UsageError
from fineprune.compressor.config import prune_config
from fineprune.compressor.criteria.fisher import DAMPENING
from fineprune.compressor.macs import count_macs
from fineprune.compressor.masks import WEIGHTS
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.ranked import Layer
from fineprune.ops.geometry import Conv
from support.geometries import KINDS, Geometry, problem
from support.networks import CONVOLUTIONS, SHAPE, samples, varied
from support.units import UNITS, Place, members


def naive_order(channels: int, kernel: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Weights of a filter one after the other, four channels of a tap next to each other; channels beyond the last are only filled in."""
    quad = min(4, channels)
    padded = -(-channels // quad) * quad
    return [(first + c, u, v) for first in range(0, padded, quad) for u, v in np.ndindex(*kernel) for c in range(quad)]


def naive_blocks(row: int, quad: int, limit: int) -> int:
    """The size of the fewest blocks of equal size that hold a row of whole quads."""
    count = next(n for n in range(1, row + 1) if -(-row // quad // n) * quad <= max(quad, limit))
    return -(-row // quad // count) * quad


def naive(gradients: list[NDArray], weight: NDArray, limit: int, units: dict[Place, list[Place]]) -> NDArray:
    """Scores of units [F,...], unit by unit; F of a filter has zeros between weights of different blocks."""
    filters, channels, *kernel = weight.shape
    order = naive_order(channels, (kernel[0], kernel[1]))
    quad = min(4, channels)
    size = naive_blocks(len(order), quad, limit)
    blocks = [[f, *order[i : i + size]] for f in range(filters) for i in range(0, len(order), size)]
    fisher = np.zeros((filters, *weight.shape[1:], *weight.shape[1:]))
    for f, *places in blocks:
        for one, other in product([at for at in places if at[0] < channels], repeat=2):
            fisher[(f, *one, *other)] = sum(gradient[(f, *one)] * gradient[(f, *other)] for gradient in gradients)
    matrices = fisher.reshape(filters, channels * kernel[0] * kernel[1], -1)
    diagonal = matrices.diagonal(axis1=1, axis2=2)
    dampening = DAMPENING * diagonal[diagonal > 0].mean()
    scores = np.zeros((filters, *np.max(list(units), axis=0) + 1))
    for f, matrix in enumerate(matrices):
        inverse = np.linalg.inv(matrix + dampening * np.eye(len(matrix)))
        for at, weights in units.items():
            of = [np.ravel_multi_index(place, weight.shape[1:]) for place in weights]
            values = np.array([weight[(f, *place)] for place in weights])
            scores[(f, *at)] = values @ np.linalg.inv(inverse[np.ix_(of, of)]) @ values / 2
    return scores


def gradients_of(p, geometry: Geometry, masked: bool) -> list[NDArray]:
    """The gradient of each mini-batch by autograd, of a convolution of which the mask drops blocks: one input patch at a time."""
    found = []
    for first in range(0, geometry.samples, fisher.MINI_BATCH):
        rows = slice(first, first + fisher.MINI_BATCH)
        x, grad = torch.from_numpy(p.x[rows]), torch.from_numpy(p.grad[rows])
        w = torch.from_numpy(p.w).requires_grad_()
        per_group, filters = geometry.channels // geometry.groups, geometry.filters // geometry.groups
        y = torch.zeros(grad.shape, dtype=x.dtype)
        for c in range(geometry.channels):
            of = slice(c // per_group * filters, (c // per_group + 1) * filters)
            part = F.conv2d(x[:, c : c + 1], w[of, c % per_group : c % per_group + 1], None, *geometry.where)
            y[:, of] += part * torch.from_numpy(p.mask[c]) if masked else part
        (gradient,) = torch.autograd.grad((y * grad).sum(), w)
        found.append(gradient.numpy())
    return found


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("geometry", [*KINDS.values(), Geometry(channels=6, filters=2, samples=7)], ids=[*KINDS, "many"])
def test_scores_are_those_of_the_formula(geometry: Geometry, masked: bool, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "MINI_BATCH", 2)
    p = problem(geometry)
    x, grad, w, mask = p.tensors("x", "grad", "w", "mask")
    where = Conv.of(*geometry.where, geometry.groups)
    sums = fisher_blocks(x, grad, w, (mask if masked else None, None), where, 20)
    gradients = gradients_of(p, geometry, masked)
    order = torch.randperm(w.shape[1], generator=torch.Generator().manual_seed(3))
    config = prune_config(fwp={"criterion": "fisher", "unit": unit}).fwp
    layer = Layer(site=geometry.site, config=config, weight=w, sums={"fisher": sums}, settings={"fisher": 20}, order=order)
    layer = replace(layer, order=None) if unit == "weight" else layer
    units = members(unit, w.shape[1], geometry.kernel, None if unit == "weight" else order.tolist())
    np.testing.assert_allclose(config.method.scores_of_units(layer), naive(gradients, p.w, 20, units), rtol=1e-7)


@pytest.mark.parametrize(
    ("channels", "kernel", "limit"), [(16, (3, 3), 50), (5, (3, 2), 8), (3, (3, 3), 50), (1, (2, 3), 4), (9, (1, 1), 4)]
)
def test_blocks_hold_every_weight_once_and_quads_whole(channels: int, kernel: tuple[int, int], limit: int) -> None:
    values = torch.arange(1.0, 1 + 2 * channels * kernel[0] * kernel[1]).view(2, channels, *kernel)
    blocks = to_blocks(values, limit)
    assert blocks.shape[2] <= limit and blocks.shape[2] % min(4, channels) == 0
    assert torch.equal(from_blocks(blocks, channels, kernel), values)
    assert sorted(blocks[blocks > 0].tolist()) == values.flatten().tolist()


def test_blocks_shrink_where_the_network_is_large() -> None:
    def site(channels: int) -> ConvSite:
        return ConvSite(name="it", in_channels=channels, out_channels=channels, kernel=(3, 3), groups=1, output_size=(4, 4))

    assert block_limit([site(64)]) == 50
    assert block_limit([site(512)] * 6) == (512 << 20) // 8 // (512 * 512 * 9 * 6)
    assert block_limit([site(4096)] * 6) == 4


def test_batches_processes_and_interruptions_leave_the_same_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "MINI_BATCH", 4)
    data = samples(20, dtype=torch.float64)

    def run(size: int) -> Statistics:
        return collect(varied(), data, Fisher(), input_shape=SHAPE, config=CalibrationConfig(batch_size=size))

    whole, pieces = run(20), run(8)
    whole.save(tmp_path / "it")
    again = Statistics.load(tmp_path / "it")
    for name in CONVOLUTIONS:
        torch.testing.assert_close(whole.layers[name]["fisher"], pieces.layers[name]["fisher"])
        assert torch.equal(again.layers[name]["fisher"], whole.layers[name]["fisher"])


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"scope": "filter"}, {"share": "channel"}, {"scope": "group", "lanes": 2}),
        *({"unit": "pair"}, {"unit": "quad"}, {"unit": "quad", "order": "file"}, {"unit": "row", "share": "channel"}),
    ],
)
def test_every_scope_keeps_what_is_asked_for(options: dict[str, object]) -> None:
    run = CalibrationRun(source=samples(16, dtype=torch.float64), input_shape=SHAPE)
    pruned = prune(varied(), prune_config(fwp={"criterion": "fisher", "ratio": 0.5, **options}), run)
    kept, dense = count_macs(pruned.model, SHAPE), count_macs(varied(), SHAPE)
    assert 0 < kept.macs < 0.75 * dense.macs
    if not options:
        assert kept.macs / dense.macs == pytest.approx(0.5, abs=0.01)


def test_dropped_weights_have_no_part_in_it() -> None:
    run = CalibrationRun(source=samples(16, dtype=torch.float64), input_shape=SHAPE)
    first = prune(varied(), prune_config(fwp={"criterion": "magnitude", "ratio": 0.4}), run)
    statistics = run.collect(first.model, Fisher())
    for name, mask in first.masks["fwp"].items():
        dropped = to_blocks((~mask).double(), statistics.settings["fisher"]) > 0
        assert dropped.any() and not statistics.layers[name]["fisher"].diagonal(dim1=-2, dim2=-1)[dropped].any()
    second = prune(first.model, prune_config(fwp={"criterion": "fisher", "ratio": 0.6}), run)
    for name, mask in first.masks[WEIGHTS.name].items():
        assert not second.masks[WEIGHTS.name][name][~mask].any()


def test_other_statistics_of_weights_are_refused() -> None:
    run = CalibrationRun(source=samples(8, dtype=torch.float64), input_shape=SHAPE)
    model = varied()
    taylor = run.collect(model, prune_config(fwp={"ratio": 0.5}).fwp.method.measure(prune_config().fwp, []))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the statistics hold no 'fisher' for layer stem; calibrate with the criterion that you prune by"):
        prune(model, prune_config(fwp={"criterion": "fisher", "ratio": 0.5}), run, statistics={"weights": taylor})


def test_a_layer_without_any_gradient_is_no_error() -> None:
    site = ConvSite(name="it", in_channels=4, out_channels=2, kernel=(1, 1), groups=1, output_size=(2, 2))
    config = prune_config(fwp={"criterion": "fisher"}).fwp
    sums = {"fisher": torch.zeros(2, 1, 4, 4, dtype=torch.float64)}
    weight = nn.init.ones_(torch.empty(2, 4, 1, 1))
    assert config.method.scores(Layer(site=site, config=config, weight=weight, sums=sums, settings={"fisher": 4})).isfinite().all()
