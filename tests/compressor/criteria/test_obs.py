"""Errors of a layer's outputs: sums and scores against loops of their formulas, and least squares itself."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fineprune.calibrate import moments
from fineprune.calibrate.collect import CalibrationConfig, collect
from fineprune.calibrate.inputs import block_outputs
from fineprune.calibrate.measures import BlockErrors, InputSquares, Measure
from fineprune.compressor.config import FFPConfig, FWPConfig, prune_config
from fineprune.compressor.criteria.obs_weights import DAMPENING, inverse
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.ranked import Layer
from support import reference
from support.geometries import KINDS, Geometry, problem
from support.networks import CONVOLUTIONS, SHAPE, samples, varied
from support.patches import patches, walk
from support.units import UNITS, members

CASES = {**KINDS, "many": Geometry(channels=10, filters=2, samples=3)}


def conv_of(geometry: Geometry) -> nn.Conv2d:
    return nn.Conv2d(geometry.channels, geometry.filters, geometry.kernel, bias=False, **geometry.options)  # type: ignore[arg-type]


def statistics_of(p, geometry: Geometry, masked: bool, size: int) -> dict[str, Tensor]:
    """H in blocks and the sum of squared outputs."""
    x, mask, w = p.tensors("x", "mask", "w")
    columns = patches(conv_of(geometry), x, mask if masked else None, torch.arange(p.mask[0].size))
    total = torch.zeros(moments.moments_shape(geometry.site, size), dtype=torch.float64)
    moments.add_moments(total, columns)
    return {"moments": total, "outputs": (w.flatten(1).unflatten(0, (geometry.groups, -1)) @ columns).square().sum()[None]}


def naive_patches(p, geometry: Geometry, mask: np.ndarray | None) -> np.ndarray:
    """x [groups,samples*positions,C/groups,kh,kw], one block at a time."""
    b = reference.blocks(p.x, geometry.kernel, *geometry.where)
    b = b if mask is None else b * mask[None, :, :, :, None, None]
    per_group = geometry.channels // geometry.groups
    groups = [b[:, g * per_group : (g + 1) * per_group] for g in range(geometry.groups)]
    return np.stack([group.transpose(0, 2, 3, 1, 4, 5).reshape(-1, per_group, *geometry.kernel) for group in groups])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("size", [40, 1000])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("geometry", CASES.values(), ids=CASES)
def test_scores_of_weights_are_those_of_the_formula(geometry: Geometry, masked: bool, size: int, unit: str) -> None:
    p = problem(geometry)
    config, sums = FWPConfig(criterion="obs", unit=unit), statistics_of(p, geometry, masked, size)  # type: ignore[arg-type]
    order = None if unit == "weight" else torch.randperm(p.w.shape[1], generator=torch.Generator().manual_seed(3))
    layer = Layer(site=geometry.site, config=config, weight=torch.from_numpy(p.w), sums=sums, order=order)
    got = config.method.scores_of_units(layer).numpy()
    rows = naive_patches(p, geometry, p.mask if masked else None)
    filters, channels, *kernel = p.w.shape
    units = members(unit, channels, kernel, None if order is None else order.tolist())
    block = np.arange(channels) // (sums["moments"].shape[2] // (kernel[0] * kernel[1]))
    together = np.repeat(block, kernel[0] * kernel[1])
    expected, outputs = np.zeros(got.shape), 0.0
    for f in range(filters):
        x = rows[f // (filters // geometry.groups)].reshape(rows.shape[1], -1)
        outputs += ((x @ p.w[f].reshape(-1)) ** 2).sum()
        hessian = sum(np.outer(patch, patch) for patch in x) * (together[:, None] == together)
        inverted = np.linalg.inv(hessian + DAMPENING * hessian.diagonal().mean() * np.eye(len(hessian)))
        place = np.arange(len(hessian)).reshape(channels, *kernel)
        for at, weights in units.items():
            of, values = [place[weight] for weight in weights], np.array([p.w[(f, *weight)] for weight in weights])
            expected[(f, *at)] = values @ np.linalg.inv(inverted[np.ix_(of, of)]) @ values / 2
    np.testing.assert_allclose(got, expected / outputs, rtol=1e-6)


def test_a_score_is_the_error_that_the_best_refit_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(50, 6, generator=generator, dtype=torch.float64), torch.randn(6, generator=generator, dtype=torch.float64)
    inverted = inverse((x.T @ x)[None, None], 6, dampening=0.0)[0, 0]
    for q in range(6):
        others = [i for i in range(6) if i != q]
        refit = torch.linalg.lstsq(x[:, others], (x @ w)[:, None]).solution
        error = (x @ w - (x[:, others] @ refit)[:, 0]).square().sum() / 2
        torch.testing.assert_close(w[q] ** 2 / (2 * inverted[q, q]), error)


@pytest.mark.parametrize("geometry", CASES.values(), ids=CASES)
def test_scores_of_blocks_are_what_is_missing_without_them(geometry: Geometry) -> None:
    p = problem(geometry)
    x, w = p.tensors("x", "w")
    got = block_outputs(x, w, walk(conv_of(geometry), x)[1], p.mask[0].size).view(p.mask.shape)
    dense = reference.masked_conv2d(p.x, p.w, None, None, *geometry.where, groups=geometry.groups)
    for c, i, j in np.ndindex(*p.mask.shape):
        mask = np.ones_like(p.mask)
        mask[c, i, j] = False
        without = reference.masked_conv2d(p.x, p.w, None, mask, *geometry.where, groups=geometry.groups)
        np.testing.assert_allclose(got[c, i, j], ((dense - without) ** 2).sum(), rtol=1e-9, atol=1e-12)
    config, sums = FFPConfig(criterion="obs"), {"error": got, "outputs": torch.tensor([4.0], dtype=torch.float64)}
    torch.testing.assert_close(config.method.scores(Layer(site=geometry.site, config=config, weight=w, sums=sums)), got / 8)


@pytest.mark.parametrize("measure", [BlockErrors(), InputSquares()], ids=lambda measure: measure.kind)
def test_batches_leave_the_same_sums_and_need_no_labels(measure: Measure) -> None:
    data = samples(12, dtype=torch.float64)
    data.labels.fill_(-1)

    def run(size: int) -> dict[str, dict[str, Tensor]]:
        return collect(varied(), data, measure, input_shape=SHAPE, config=CalibrationConfig(batch_size=size)).layers

    whole, pieces = run(12), run(5)
    assert whole.keys() == set(CONVOLUTIONS)
    for name, sums in whole.items():
        for key, value in sums.items():
            torch.testing.assert_close(pieces[name][key], value)


def test_the_two_normalisations_are_the_same() -> None:
    run = CalibrationRun(source=samples(6, dtype=torch.float64), input_shape=SHAPE)
    model = varied()
    blocks, weights = (run.collect(model, measure).layers for measure in (BlockErrors(), InputSquares()))
    for name in CONVOLUTIONS:
        conv, moments = model.get_submodule(name), weights[name]["moments"][:, 0]
        rows = conv.weight.detach().flatten(1).unflatten(0, (conv.groups, -1))
        torch.testing.assert_close(((rows @ moments) * rows).sum()[None], weights[name]["outputs"])
        torch.testing.assert_close(weights[name]["outputs"], blocks[name]["outputs"])


@pytest.mark.parametrize(
    "options",
    [
        {"fwp": {"criterion": "obs"}},
        {"fwp": {"criterion": "obs", "scope": "layer"}},
        {"fwp": {"criterion": "obs", "share": "group", "lanes": 2}},
        *({"fwp": {"criterion": "obs", "unit": unit}} for unit in ("pair", "quad", "row")),
        {"fwp": {"criterion": "obs", "unit": "quad", "order": "file"}},
        {"ffp": {"criterion": "obs"}},
    ],
)
def test_every_door_keeps_what_is_asked_for(options: dict[str, dict[str, object]]) -> None:
    run = CalibrationRun(source=samples(8, dtype=torch.float64), input_shape=SHAPE)
    pruned = prune(varied(), prune_config(**{part: {**given, "ratio": 0.4} for part, given in options.items()}), run)  # type: ignore[arg-type]
    kept, dense = count_macs(pruned.model, SHAPE), count_macs(varied(), SHAPE)
    assert 0.5 * dense.macs < kept.macs < 0.8 * dense.macs
