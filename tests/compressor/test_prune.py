"""Network and samples in, masked network out: every pass in its order, and the whole of one convolution by naive loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fineprune.calibrate.collect import CalibrationConfig, collect
from fineprune.calibrate.convolutions import find_convolutions
from fineprune.calibrate.measures import BlockScores
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import RunError, UsageError
from fineprune.compressor.bake import bake
from fineprune.compressor.config import prune_config
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune, sharing
from support import reference
from support.fakes import FakeSplit, Recorder
from support.networks import CONVOLUTIONS, SHAPE, samples, varied
from support.tolerances import FLOAT64


def calibration(**options: object) -> CalibrationRun:
    settings = {"source": samples(6, dtype=torch.float64), "input_shape": SHAPE, "config": CalibrationConfig(batch_size=4)}
    return CalibrationRun(**{**settings, **options})  # type: ignore[arg-type]


class OneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize(("ffp", "fwp"), [(0.4, 0.556), (0.25, 0.25), (0.7, 0.8)])
def test_the_thesis_on_one_convolution_equals_naive_loops(ffp: float, fwp: float) -> None:
    """Algorithm 8, Algorithm 9 and the masked convolution, each as a loop, against `prune`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OneConvolution()
    source = samples(9, dtype=torch.float64)
    x, w, bias = source.images.numpy(), model.conv.weight.detach().numpy(), model.conv.bias.detach().numpy()  # type: ignore[union-attr]
    where = {"stride": 2, "padding": 1}

    scores = reference.block_scores(x, 3, **where)
    positions = scores.shape[2] * scores.shape[3]
    keep, keep_taps = positions - round(ffp * positions), 9 - round(fwp * 9)
    frequency = np.zeros(scores.shape[1:], int)
    for n, c in np.ndindex(*scores.shape[:2]):
        frequency[c].reshape(-1)[np.argsort(-scores[n, c].reshape(-1))[:keep]] += 1
    mask = np.zeros(frequency.shape, bool)
    for c in range(3):
        order = sorted(range(positions), key=lambda i: (-frequency[c].flat[i], -scores[:, c].sum(0).flat[i], i))
        mask[c].reshape(-1)[order[:keep]] = True
    importance = np.abs(w) * reference.tap_sums(np.abs(x), mask, 3, **where)
    taps = np.zeros(w.shape, bool)
    for f, c in np.ndindex(*w.shape[:2]):
        taps[f, c].reshape(-1)[np.argsort(-importance[f, c].reshape(-1))[:keep_taps]] = True
    expected = reference.masked_conv2d(x, w * taps, bias, mask, **where)

    pruned = prune(model, prune_config("thesis", ffp={"ratio": ffp}, fwp={"ratio": fwp}), calibration(source=source))
    assert np.array_equal(pruned.masks["ffp"]["conv"], mask)
    assert np.array_equal(pruned.masks["fwp"]["conv"], taps)
    rtol, atol = FLOAT64
    np.testing.assert_allclose(pruned.model(source.images).detach(), expected.mean((2, 3)), rtol=rtol, atol=atol)


@pytest.mark.parametrize("preset", ["thesis", "taylor"])
def test_both_presets_cut_a_varied_network(preset: str) -> None:
    model = varied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prune(model, prune_config(preset, ffp={"ratio": 0.37}, fwp={"ratio": 0.556}), calibration())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert pruned.skipped == []
    report, dense = count_macs(pruned.model, SHAPE), count_macs(model, SHAPE)
    if preset == "taylor":
        assert (report.macs / dense.macs) == pytest.approx(0.63 * 0.444, abs=0.01)
    assert 0.2 < report.macs / dense.macs < 0.4
    assert torch.isfinite(pruned.model(samples(2, dtype=torch.float64).images)).all()


def test_one_half_alone() -> None:
    blocks_only = prune(varied(), prune_config(ffp={"ratio": 0.3}), calibration())
    assert blocks_only.masks["fwp"] == {}
    assert blocks_only.masks["ffp"]
    weights_only = prune(varied(), prune_config("thesis", fwp={"per_layer": {"stem": 0.5}}), calibration())
    assert weights_only.masks["ffp"] == {}
    assert list(weights_only.masks["fwp"]) == ["stem"]


def test_groups_come_with_the_scope_that_has_them() -> None:
    config = prune_config("thesis", fwp={"ratio": 0.5, "scope": "group", "lanes": 2})
    pruned = prune(varied(), config, calibration())
    assert set(pruned.groups) == set(pruned.masks["fwp"]) == set(CONVOLUTIONS)
    for name, mask in pruned.masks["fwp"].items():
        for number in pruned.groups[name].unique():
            members = mask[pruned.groups[name] == number]
            assert (members == members[:1]).all()


def test_groups_that_an_earlier_mask_tells_apart_are_none() -> None:
    carried = torch.ones(6, 3, 3, 3, dtype=torch.bool)
    carried[0, 0, 0, 0] = False
    config = prune_config("thesis", fwp={"ratio": 0.5, "scope": "group", "lanes": 2})
    pruned = prune(bake(varied(), {"fwp": {"stem": carried}}), config, calibration())
    for name, sets in pruned.groups.items():
        for number in sets.unique():
            members = pruned.masks["fwp"][name][sets == number]
            assert (members == members[:1]).all(), name
    sets = {"a": torch.tensor([0, 1, 0, 1]), "b": torch.tensor([1, 1, 0, 0]), "none": torch.tensor([0])}
    mask = torch.tensor([[True], [False], [True], [False]])
    assert set(sharing(sets, {"a": mask, "b": mask})) == {"a"}


def test_nothing_to_prune_is_said() -> None:
    progress = Recorder()
    pruned = prune(varied(), prune_config(), calibration(progress=progress))
    assert progress.lines == ["warning: nothing was pruned; give --prune, --ffp or --fwp a fraction above 0 (in Python: prune, ffp, fwp)"]
    assert (pruned.masks["ffp"], pruned.masks["fwp"], progress.loops) == ({}, {}, [])


def test_finished_passes_are_used_again(tmp_path: Path) -> None:
    config = prune_config(ffp={"ratio": 0.3}, fwp={"ratio": 0.3})
    source = samples(6, dtype=torch.float64)
    first = prune(varied(), config, calibration(source=source, folder=tmp_path / "statistics"))
    assert len(source.seen) == 1 + 4, "two samples to try the masks on, then two passes"
    again = prune(varied(), config, calibration(source=source, folder=tmp_path / "statistics"))
    assert len(source.seen) == 1 + 4 + 1
    for one, other in ((first.masks["ffp"], again.masks["ffp"]), (first.masks["fwp"], again.masks["fwp"])):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_statistics_at_hand_replace_a_pass_and_must_fit() -> None:
    model, source = varied(), samples(6, dtype=torch.float64)
    statistics = collect(model, source, BlockScores(), input_shape=SHAPE)
    source.seen.clear()
    config = prune_config(ffp={"ratio": 0.3})
    assert prune(model, config, calibration(source=source), statistics={"blocks": statistics}).masks["ffp"]
    assert [places.tolist() for places in source.seen] == [[0, 1]], "no more than the two samples that masks are tried on"
    with pytest.raises(UsageError, match="the blocks statistics were collected on another network; calibrate again with the same options"):
        prune(varied(seed=1), config, calibration(), statistics={"blocks": statistics})
    larger = FakeSplit(torch.ones(2, 3, 9, 9, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
    message = r"the blocks statistics were collected on inputs of \[3, 7, 5\], not \[3, 9, 9\]; calibrate again"
    with pytest.raises(UsageError, match=message):
        prune(model, config, calibration(input_shape=(3, 9, 9), source=larger), statistics={"blocks": statistics})
    with pytest.raises(UsageError, match=r"the calibration samples are of shape \[3, 9, 9\], not \[3, 7, 5\]; give their shape"):
        prune(model, config, calibration(source=larger))
    message = "the statistics hold block scores of 'taylor', not of 'l2'; calibrate with that criterion"
    with pytest.raises(UsageError, match=message):
        prune(model, prune_config("thesis", ffp={"ratio": 0.3}), calibration(), statistics={"blocks": statistics})


def test_frequencies_serve_only_the_ratio_that_they_were_counted_with(tmp_path: Path) -> None:
    config = prune_config("thesis", ffp={"ratio": 0.3})
    prune(varied(), config, calibration(folder=tmp_path))
    frequencies = Statistics.load(tmp_path / "blocks")
    assert prune(varied(), config, calibration(source=[]), statistics={"blocks": frequencies}).masks["ffp"]
    message = "the frequencies of stem were counted with 25 blocks kept of a channel and not 17; calibrate again with the ratios"
    with pytest.raises(UsageError, match=message):
        prune(varied(), prune_config("thesis", ffp={"ratio": 0.5}), calibration(), statistics={"blocks": frequencies})


@pytest.mark.parametrize("half", ["ffp", "fwp"])
def test_a_glob_without_a_match_fails_before_any_pass(half: str) -> None:
    source = FakeSplit(torch.zeros(0), torch.zeros(0))  # would fail by itself
    options = {"ffp": {"ratio": 0.3}, "fwp": {"ratio": 0.3}}
    options[half] = {"ratio": 0.3, "per_layer": {"layer9": 0.1}}  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="the pattern 'layer9' matches no convolution"):
        prune(varied(), prune_config(**options), calibration(source=source))  # type: ignore[arg-type]


def test_networks_with_nothing_to_mask_are_refused_with_the_reasons() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.Flatten())
    message = "the network has no convolution that can carry masks; 0: ConvTranspose2d is left as it is unless its type"
    with pytest.raises(UsageError, match=message):
        prune(model, prune_config(ffp={"ratio": 0.3}), calibration())


class Aside(nn.Module):
    """A head that takes no part in the answer, after the one that does."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem, self.body, self.head = (nn.Conv2d(3, 3, 3, dtype=torch.float64, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu_()
        self.kept = self.head(x)
        return self.body(x).mean((2, 3))


@pytest.mark.parametrize("half", ["ffp", "fwp"])
def test_a_layer_that_no_gradient_reaches_is_left_dense_and_named(half: str, tmp_path: Path) -> None:
    run = calibration(folder=tmp_path)
    pruned = prune(Aside(), prune_config(**{half: {"ratio": 0.3}}), run)
    assert set(pruned.masks["ffp"]) | set(pruned.masks["fwp"]) == {"stem", "body"}
    reason = "no gradient reaches it, by which its worth is measured; the preset thesis needs none"
    assert [(s.name, s.reason) for s in pruned.skipped] == [("head", reason)]
    again = prune(Aside(), prune_config(**{half: {"ratio": 0.3, "exclude": ("head",)}}), run)
    assert again.skipped == [], "what was asked to stay dense needs no reason"
    assert set(again.masks["ffp"]) | set(again.masks["fwp"]) == {"stem", "body"}
    thesis = prune(Aside(), prune_config("thesis", **{half: {"ratio": 0.3}}), calibration())
    assert set(thesis.masks["ffp"]) | set(thesis.masks["fwp"]) == {"stem", "body", "head"} and thesis.skipped == []


class Asks(Aside):
    """A forward that asks for the exact type of its convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1 if type(self.body) is nn.Conv2d else 2)


def test_what_masks_would_change_stops_before_any_pass() -> None:
    progress = Recorder()
    with pytest.raises(RunError, match=r"masks that drop nothing change the network's outputs .* in body: .*--exclude body"):
        prune(Asks(), prune_config(fwp={"ratio": 0.3}), calibration(progress=progress))
    assert progress.loops == []


def test_blocks_are_pruned_on_top_of_filters() -> None:
    """The source's combination: 15 % of all blocks of the dense layers, measured under the masks that are there, which stay."""
    filters = prune(varied(), prune_config(fwp={"criterion": "fpgm", "ratio": 0.4}), calibration())
    both = prune(filters.model, prune_config("thesis", ffp={"ratio": 0.15}), calibration())
    assert all(torch.equal(both.masks["fwp"][name], mask) for name, mask in filters.masks["fwp"].items())
    assert both.masks["ffp"]["stem"].flatten(1).sum(1).tolist() == [35 - round(0.15 * 35)] * 3
    report = count_macs(both.model, SHAPE)
    for layer in report.layers:
        if layer.kind != "conv2d":
            continue
        module = both.model.get_submodule(layer.name)
        blocks = both.masks["ffp"].get(layer.name, torch.ones(module.in_channels, *layer.output_shape[1:], dtype=torch.bool))  # type: ignore[arg-type]
        taps = both.masks["fwp"].get(layer.name, torch.ones(module.weight.shape, dtype=torch.bool))  # type: ignore[union-attr, arg-type]
        filters_of, per_group = len(taps) // module.groups, taps.shape[1]  # type: ignore[operator]
        by_hand = sum(
            int(blocks[f // filters_of * per_group + c].sum()) * int(taps[f, c].sum()) for f in range(len(taps)) for c in range(per_group)
        )
        assert layer.macs == by_hand, layer.name
    twin = bake(varied(), both.masks).eval()
    images = samples(2, dtype=torch.float64).images
    torch.testing.assert_close(both.model.eval()(images), twin(images))


@pytest.mark.parametrize("preset", ["thesis", "taylor"])
@pytest.mark.parametrize("half", ["ffp", "fwp"])
def test_what_was_dropped_before_counts_towards_the_ratio_and_stays_dropped(half: str, preset: str) -> None:
    first = prune(varied(), prune_config(preset, **{half: {"ratio": 0.3}}), calibration())
    again = prune(first.model, prune_config(preset, **{half: {"ratio": 0.3}}), calibration())
    more = prune(first.model, prune_config(preset, **{half: {"ratio": 0.6}}), calibration())
    alone = prune(varied(), prune_config(preset, **{half: {"ratio": 0.6}}), calibration())
    for name, mask in first.masks[half].items():
        assert torch.equal(again.masks[half][name], mask), "0.3 twice is 0.3"
        assert not (more.masks[half][name] & ~mask).any(), "what is dropped stays dropped"
    kept = [sum(int(mask.sum()) for mask in pruned.masks[half].values()) for pruned in (more, alone)]
    assert kept[0] == pytest.approx(kept[1], abs=6)


def test_what_is_measured_on_top_is_the_network_under_its_masks() -> None:
    """A channel without weights is worth nothing, so its blocks go first."""
    model = varied()
    taps = torch.ones(6, 3, 3, 3, dtype=torch.bool)
    taps[:, 1] = False
    masked = bake(model, {"fwp": {"stem": taps}})
    pruned = prune(masked, prune_config(ffp={"per_layer": {"stem": 0.3}, "include": ("stem",)}), calibration())
    kept = pruned.masks["ffp"]["stem"].flatten(1).sum(1).tolist()
    assert kept[0] == kept[2] == 35 and kept[1] == 105 - round(0.3 * 105) - 70
    assert len(find_convolutions(pruned.model, SHAPE)[0]) == len(CONVOLUTIONS)
