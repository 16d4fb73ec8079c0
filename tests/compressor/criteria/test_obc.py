"""The optimal brain surgeon of a filter against one that inverts what is left of H anew after every weight, and against least squares."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fineprune.calibrate.measures import InputSquares
from fineprune.calibrate.moments import add_moments, moments_shape
from fineprune.common.errors import UsageError
from fineprune.compressor.config import FWPConfig, prune_config
from fineprune.compressor.criteria.obc import rises
from fineprune.compressor.criteria.obs_weights import DAMPENING
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.ranked import Layer
from support.geometries import KINDS, Geometry, problem
from support.networks import SHAPE, samples, varied
from support.patches import patches
from support.units import UNITS, members

CASES = {**KINDS, "blocks": Geometry(channels=10, filters=2, samples=3)}


def naive(weights: NDArray, hessian: NDArray) -> NDArray:
    """The largest rise up to each weight's turn."""
    rest, w, most, found = list(range(len(weights))), weights.copy(), 0.0, np.zeros(len(weights))
    while rest:
        inverted = np.linalg.inv(hessian[np.ix_(rest, rest)])
        rise = w[rest] ** 2 / (2 * inverted.diagonal())
        q = int(rise.argmin())
        most = max(most, rise[q])
        found[rest[q]] = most
        w[rest] -= w[rest[q]] / inverted[q, q] * inverted[:, q]
        del rest[q]
    return found


@pytest.mark.parametrize("geometry", CASES.values(), ids=CASES)
def test_scores_are_those_of_the_formula(geometry: Geometry) -> None:
    p = problem(geometry)
    conv = nn.Conv2d(geometry.channels, geometry.filters, geometry.kernel, bias=False, **geometry.options)  # type: ignore[arg-type]
    moments = torch.zeros(moments_shape(geometry.site, 40), dtype=torch.float64)
    add_moments(moments, patches(conv, *p.tensors("x"), None, torch.arange(p.mask[0].size)))
    config, sums = FWPConfig(criterion="obc"), {"moments": moments, "outputs": torch.tensor([4.0], dtype=torch.float64)}
    got = config.method.scores(Layer(site=geometry.site, config=config, weight=torch.from_numpy(p.w), sums=sums)).flatten(1).numpy()
    inputs, size = got.shape[1], moments.shape[2]
    for f, row in enumerate(got):
        of_group = moments[f // (geometry.filters // geometry.groups)].numpy()
        a = DAMPENING * sum(block.diagonal().sum() for block in of_group) / inputs
        for first, block in zip(range(0, inputs, size), of_group, strict=True):
            last = min(first + size, inputs)
            hessian = block[: last - first, : last - first] + a * np.eye(last - first)
            np.testing.assert_allclose(row[first:last], naive(p.w[f].reshape(-1)[first:last], hessian) / 4, rtol=1e-6)


def test_rises_add_up_to_the_error_that_the_best_refit_leaves() -> None:
    """As long as they grow, which they do here."""
    random = np.random.default_rng(3)
    x, w = random.normal(size=(60, 8)), np.geomspace(1, 50, 8)
    inverted = torch.from_numpy(np.linalg.inv(x.T @ x))[None, None]
    got = rises(torch.from_numpy(w)[None, None, None], inverted)[0, 0, 0].numpy()
    order = got.argsort()
    assert (np.diff(got[order]) > 0).all()
    for dropped in range(1, 8):
        stay = order[dropped:]
        refit = np.linalg.lstsq(x[:, stay], x @ w, rcond=None)[0]
        np.testing.assert_allclose(got[order[:dropped]].sum(), ((x @ w - x[:, stay] @ refit) ** 2).sum() / 2)


def naive_units(weights: NDArray, hessian: NDArray, units: list[list[int]]) -> list[float]:
    """The largest rise up to each unit's turn."""
    rest, left, w, most, found = list(range(len(weights))), list(range(len(units))), weights.copy(), 0.0, [0.0] * len(units)
    while left:
        inverted = np.zeros_like(hessian)
        inverted[np.ix_(rest, rest)] = np.linalg.inv(hessian[np.ix_(rest, rest)])
        rise = [w[Q] @ np.linalg.inv(inverted[np.ix_(Q, Q)]) @ w[Q] / 2 for Q in (units[u] for u in left)]
        u = left.pop(k := int(np.argmin(rise)))
        most, Q = max(most, rise[k]), units[u]
        found[u] = most
        w = w - inverted[:, Q] @ np.linalg.inv(inverted[np.ix_(Q, Q)]) @ w[Q]
        rest = [q for q in rest if q not in Q]
    return found


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("case", ["blocks", "groups"])
def test_units_go_one_after_the_other(unit: str, case: str) -> None:
    geometry = CASES[case]
    p = problem(geometry)
    moments = torch.zeros(moments_shape(geometry.site, 40), dtype=torch.float64)
    conv = nn.Conv2d(geometry.channels, geometry.filters, geometry.kernel, bias=False, **geometry.options)  # type: ignore[arg-type]
    add_moments(moments, patches(conv, *p.tensors("x"), None, torch.arange(p.mask[0].size)))
    config = FWPConfig(criterion="obc", unit=unit)  # type: ignore[arg-type]
    sums = {"moments": moments, "outputs": torch.tensor([4.0], dtype=torch.float64)}
    got = config.method.scores_of_units(Layer(site=geometry.site, config=config, weight=torch.from_numpy(p.w), sums=sums))
    channels, inputs, size = geometry.channels // geometry.groups, p.w[0].size, moments.shape[2]
    at, places = np.arange(inputs).reshape(p.w[0].shape), members(unit, channels, geometry.kernel)
    units = [[int(at[place]) for place in weights] for weights in places.values()]
    for f, row in enumerate(got):
        of_group = moments[f // (geometry.filters // geometry.groups)].numpy()
        hessian = DAMPENING * sum(block.diagonal().sum() for block in of_group) / inputs * np.eye(inputs)
        for first, block in zip(range(0, inputs, size), of_group, strict=True):
            last = min(first + size, inputs)
            hessian[first:last, first:last] += block[: last - first, : last - first]
        if unit == "weight":  # each block by itself
            parts = [slice(k, k + size) for k in range(0, inputs, size)]
            wanted = np.concatenate([naive(p.w[f].reshape(-1)[part], hessian[part, part]) for part in parts])
        else:
            wanted = np.array(naive_units(p.w[f].reshape(-1), hessian, units))
        np.testing.assert_allclose([float(row[place]) for place in places], wanted / 4, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"scope": "filter"}, {"share": "channel"}, {"unit": "quad"}, {"unit": "pair", "order": "file"}])
def test_every_door_keeps_what_is_asked_for(options: dict[str, object]) -> None:
    run = CalibrationRun(source=samples(8, dtype=torch.float64), input_shape=SHAPE)
    pruned = prune(varied(), prune_config(fwp={"criterion": "obc", "ratio": 0.4, **options}), run)
    kept, dense = count_macs(pruned.model, SHAPE), count_macs(varied(), SHAPE)
    assert 0.5 * dense.macs < kept.macs < 0.8 * dense.macs


def test_statistics_of_larger_blocks_are_refused() -> None:
    run, config = (
        CalibrationRun(source=samples(8, dtype=torch.float64), input_shape=SHAPE),
        prune_config(fwp={"criterion": "obc", "ratio": 0.4}),
    )
    statistics = run.collect(varied(), InputSquares())
    statistics.settings["moments"] = 601
    with pytest.raises(UsageError, match="the statistics have blocks of more than 600 weights, as 'obs' has them; calibrate with 'obc'"):
        prune(varied(), config, run, statistics={"weights": statistics})
