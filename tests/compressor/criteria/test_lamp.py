"""LAMP and global magnitude against loops from the papers, cut at a budget of multiply-adds; and by lot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.compressor.config import prune_config
from fineprune.compressor.criteria.lamp import lamp
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.export.exporter import export_onnx
from fineprune.export.parity import check_parity
from support.fakes import Recorder
from support.networks import CONVOLUTIONS, SHAPE, samples, varied


def run(**options: object) -> CalibrationRun:
    return CalibrationRun(**{"source": samples(4, dtype=torch.float64), "input_shape": SHAPE, **options})  # type: ignore[arg-type]


def naive_lamp(weight: np.ndarray) -> np.ndarray:
    """Score(u) = W[u]^2 / sum_{v >= u} W[v]^2, where indices rise with the magnitude."""
    flat = weight.ravel()
    order = sorted(range(flat.size), key=lambda i: (abs(flat[i]), i))
    scores = np.zeros(flat.size)
    for place, u in enumerate(order):
        scores[u] = flat[u] ** 2 / sum(flat[v] ** 2 for v in order[place:])
    return scores.reshape(weight.shape)


def cut(model: nn.Module, scores: dict[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
    """One list of all weights, the best first, until the budget of multiply-adds is spent."""
    costs = {row.name: row.macs_dense // scores[row.name].size for row in count_macs(model, SHAPE).layers if row.name in scores}
    budget = (1 - ratio) * sum(costs[name] * of.size for name, of in scores.items())
    ranked = sorted(((-of.flat[i], name, i) for name, of in scores.items() for i in range(of.size)), key=lambda entry: entry[0])
    kept, spent = {name: np.zeros(of.shape, bool) for name, of in scores.items()}, 0
    for _, name, i in ranked:
        if spent + costs[name] > budget:
            break
        spent += costs[name]
        kept[name].flat[i] = True
    return kept


def test_lamp_worked_by_hand() -> None:
    assert lamp(torch.tensor([4.0, 1.0, 5.0, 0.0])).tolist() == pytest.approx([4 / 9, 1 / 10, 1, 0])
    assert lamp(torch.tensor([2.0, 2.0])).tolist() == pytest.approx([1 / 2, 1]), "the larger index stays longer"
    assert lamp(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("ratio", [0.3, 0.8])
@pytest.mark.parametrize("method", ["lamp", "magnitude"])
def test_one_list_over_all_layers_as_in_the_paper_without_a_pass_over_the_data(method: str, ratio: float) -> None:
    model, progress = varied(), Recorder()
    settings = {"criterion": method, "ratio": ratio, "scope": "global", "floor": 0.0}
    pruned = prune(model, prune_config(fwp=settings), run(progress=progress))
    assert progress.loops == [], "it needs no data"
    weights = {name: model.get_submodule(name).weight.detach().numpy() for name in CONVOLUTIONS}
    expected = cut(model, {name: naive_lamp(w) if method == "lamp" else abs(w) for name, w in weights.items()}, ratio)
    for name in CONVOLUTIONS:
        mask = pruned.masks["fwp"].get(name, torch.ones(weights[name].shape, dtype=torch.bool))
        assert (mask.numpy() == expected[name]).all(), name


@pytest.mark.parametrize("unit", ["quad", "row"])
def test_weights_that_go_together_are_one_weight_of_the_sum_of_their_squares(unit: str) -> None:
    model = varied()
    masks = prune(model, prune_config(fwp={"criterion": "lamp", "ratio": 0.5, "unit": unit, "order": "file", "scope": "layer"}), run())
    for name, mask in masks.masks["fwp"].items():
        weight = model.get_submodule(name).weight.detach().numpy()
        units = weight.shape[:3] if unit == "row" else (len(weight), -(-weight.shape[1] // 4), *weight.shape[2:])
        squares, at = np.zeros(units), np.zeros(weight.shape, int)
        for f, c, u, v in np.ndindex(*weight.shape):
            place = (f, c, u) if unit == "row" else (f, c // 4, u, v)
            squares[place] += weight[f, c, u, v] ** 2
            at[f, c, u, v] = np.ravel_multi_index(place, units)
        scores = naive_lamp(np.sqrt(squares)).ravel()
        kept = np.argsort(-scores, kind="stable")[: scores.size - round(0.5 * scores.size)]
        assert (mask.numpy() == np.isin(at, kept)).all(), name


def test_block_masks_change_no_order_within_a_layer() -> None:
    model = varied()
    blocks = {"criterion": "random", "scope": "channel", "ratio": 0.3, "per_layer": {"stem": 0.6}}
    weights = {"criterion": "lamp", "scope": "layer", "ratio": 0.5}
    masks = prune(model, prune_config(ffp=blocks, fwp=weights), run()).masks["fwp"]
    for name, mask in masks.items():
        magnitude = model.get_submodule(name).weight.detach().abs()
        assert magnitude[mask].min() >= magnitude[~mask].max(), name


@pytest.mark.parametrize("kind", ["ffp", "fwp"])
def test_by_lot_is_by_the_seed_and_alike_in_all_layers(kind: str) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        progress = Recorder()
        config = prune_config(**{kind: {"criterion": "random", "ratio": 0.5, "floor": 0.0}})
        masks = prune(varied(), config, run(config=CalibrationConfig(seed=seed), progress=progress)).masks[kind]
        assert progress.loops == [], "it needs no data"
        return masks

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert first.keys() == set(CONVOLUTIONS)
    assert all(torch.equal(mask, again[name]) for name, mask in first.items())
    assert not all(torch.equal(mask, other[name]) for name, mask in first.items())
    shares = [float(mask.float().mean()) for mask in first.values() if mask.numel() > 100]
    assert max(shares) - min(shares) < 0.3 and abs(sum(shares) / len(shares) - 0.5) < 0.1
    assert first["grouped"].unique().tolist() == [False, True]


def test_lamp_is_exported_and_runs_in_the_engine(tmp_path: Path) -> None:
    config = prune_config(fwp={"criterion": "lamp", "ratio": 0.6}, ffp={"criterion": "random", "ratio": 0.15, "scope": "channel"})
    model = prune(varied(), config, run()).model.float().eval()
    export_onnx(model, SHAPE, tmp_path / "net.onnx")
    report = check_parity(model, tmp_path / "net.onnx", samples(4).images.numpy(), reference_samples=1, engine=True)
    assert report.passed and report.compares("engine")
