"""The calibration passes over a network of every kind of convolution, against one sample at a time through naive loops."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate import fisher
from fineprune.calibrate.collect import CalibrationConfig, Source, collect
from fineprune.calibrate.convolutions import find_convolutions
from fineprune.calibrate.measures import BlockErrors, BlockScores, Fisher, Frequencies, InputSquares, Measure, WeightSums
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import RunError, UsageError
from fineprune.compressor.bake import bake
from support.fakes import FakeBatch, FakeSplit, Recorder
from support.networks import CONVOLUTIONS, SHAPE, samples, varied
from support.slow_calibration import SumsConv, TopKConv, exchanged, first_order_effects

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
SMALL = CalibrationConfig(batch_size=3)
KEEP = {"stem": 11, "grouped": 20, "depthwise": 9, "down": 3}
"""Blocks kept of each channel; `pointwise` keeps all of its 35."""


def data(count: int = 5) -> FakeSplit:
    return samples(count, dtype=torch.float64)


def masks(density: float = 0.7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    sites = [site for site in find_convolutions(varied(), SHAPE)[0] if site.name != "stem"]
    return {site.name: torch.rand(site.in_channels, *site.output_size, generator=generator) < density for site in sites}


def blocks(
    source: Source,
    criterion: str = "taylor",
    model: nn.Module | None = None,
    *,
    propagate: str = "masked",
    keep: object = KEEP,
    **options: object,
) -> Statistics:
    measure = BlockScores() if criterion == "taylor" else Frequencies(norm=criterion, keep=keep, propagate=propagate)  # type: ignore[arg-type]
    return collect(model or varied(), source, measure, **{"input_shape": SHAPE, "config": SMALL, **options})  # type: ignore[arg-type]


def weights(source: Source, model: nn.Module | None = None, *, taylor: bool = True, lanes: int = 2, **options: object) -> Statistics:
    measure = WeightSums(taylor=taylor, lanes=lanes)
    return collect(model or bake(varied(), {"ffp": masks()}), source, measure, **{"input_shape": SHAPE, "config": SMALL, **options})  # type: ignore[arg-type]


def assert_same(a: Statistics, b: Statistics, *, exactly: bool = False) -> None:
    assert a.samples == b.samples
    assert list(a.layers) == list(b.layers) == CONVOLUTIONS
    for name, fields in a.layers.items():
        assert fields.keys() == b.layers[name].keys()
        for key, value in fields.items():
            if exactly or value.dtype == torch.int64:
                assert torch.equal(value, b.layers[name][key]), (name, key)
            else:
                torch.testing.assert_close(value, b.layers[name][key], **TOLERANCE)


# What is collected


def test_block_taylor_is_the_squared_gradient_of_a_gate_on_every_block() -> None:
    outputs = {site.name: site.output_size for site in find_convolutions(varied(), SHAPE)[0]}
    effects = first_order_effects(varied(), data(), outputs, {})
    got = blocks(data())
    for name in CONVOLUTIONS:
        expected = sum(effect[name][0].square() for effect in effects)
        torch.testing.assert_close(got.layers[name]["taylor"], expected, **TOLERANCE)
        assert got.layers[name]["taylor"].max() > 0


def test_tap_taylor_is_the_squared_gradient_of_a_gate_on_every_set_of_weights() -> None:
    outputs = {site.name: site.output_size for site in find_convolutions(varied(), SHAPE)[0]}
    effects = first_order_effects(varied(), data(), outputs, masks())
    got = weights(data())
    for name in CONVOLUTIONS:
        conv = varied().get_submodule(name)
        sets = {
            "taylor": torch.arange(conv.out_channels),
            "taylor_group": got.layers[name]["groups"],
            "taylor_channel": torch.arange(conv.out_channels) // (conv.out_channels // conv.groups),
        }
        for field, assignment in sets.items():
            expected = 0.0
            for effect in effects:
                per_filter = effect[name][1]
                shared = torch.zeros(int(assignment.max()) + 1, *per_filter.shape[1:], dtype=torch.float64)
                expected = expected + shared.index_add(0, assignment, per_filter).square()
            torch.testing.assert_close(got.layers[name][field].reshape(expected.shape), expected, **TOLERANCE)


@pytest.mark.parametrize("taylor", [True, False])
def test_weight_sums_equal_the_naive_loops_under_the_masks(taylor: bool) -> None:
    source, model = data(), bake(varied(), {"ffp": masks()})
    got = weights(source, taylor=taylor)
    slow = exchanged(model, dict.fromkeys(CONVOLUTIONS), lambda name, conv: SumsConv(conv, masks().get(name)))
    with torch.no_grad():
        model(source.images)
    for name in CONVOLUTIONS:
        for key, expected in slow[name].sums.items():
            np.testing.assert_allclose(got.layers[name][key], expected, **TOLERANCE)
        assert ("taylor" in got.layers[name]) == taylor


@pytest.mark.parametrize("propagate", ["masked", "dense"])
def test_frequencies_equal_algorithm_8_one_sample_at_a_time(propagate: str) -> None:
    source = data()
    slow, fast = varied(), varied()
    for model in (slow, fast):  # no ties: no zeros, no mirrored blocks, no two blocks that see the same pixels
        model.relu = nn.Tanh()
        model.grouped.padding_mode = "circular"
        model.depthwise.dilation, model.depthwise.padding = (1, 1), (1, 1)
    positions = {site.name: site.positions for site in find_convolutions(fast, SHAPE)[0]}
    layers = exchanged(slow, positions, lambda name, conv: TopKConv(conv, KEEP.get(name, positions[name]), masked=propagate == "masked"))
    with torch.no_grad():
        for image in source.images:
            slow(image[None])
    got = blocks(source, "l2", fast, propagate=propagate)
    for name in CONVOLUTIONS:
        assert np.array_equal(got.layers[name]["frequency"], layers[name].frequency), name


def test_deeper_layers_see_masked_inputs_unless_asked_otherwise() -> None:
    masked, dense = (blocks(data(), "l2", propagate=p).layers for p in ("masked", "dense"))
    assert torch.equal(masked["stem"]["frequency"], dense["stem"]["frequency"])
    for name in CONVOLUTIONS[1:]:
        assert not torch.equal(masked[name]["norm"], dense[name]["norm"]), name


@pytest.mark.parametrize("criterion", ["l2", "l1", "apoz"])
def test_every_sample_keeps_k_blocks_of_every_channel(criterion: str) -> None:
    got = blocks(data(), criterion)
    for site in find_convolutions(varied(), SHAPE)[0]:
        kept = KEEP.get(site.name, site.positions)
        assert (got.layers[site.name]["frequency"].flatten(1).sum(1) == 5 * kept).all()


def test_sums_have_the_size_of_the_layer_whatever_the_number_of_samples() -> None:
    for count in (2, 9):
        statistics = {c: blocks(data(count), c) for c in ("l2", "taylor")}
        by_weight = weights(data(count))
        for site in find_convolutions(varied(), SHAPE)[0]:
            shape = (site.in_channels, *site.output_size)
            kernel = (site.in_channels // site.groups, *site.kernel)
            fields = by_weight.layers[site.name]
            assert {k: tuple(v.shape) for k, v in statistics["l2"].layers[site.name].items()} == {"frequency": shape, "norm": shape}
            assert {k: tuple(v.shape) for k, v in statistics["taylor"].layers[site.name].items()} == {"taylor": shape}
            assert {k: tuple(v.shape) for k, v in fields.items()} == {
                "absolute": (site.in_channels, *site.kernel),
                "signed": (site.in_channels, *site.kernel),
                "taylor": (site.out_channels, *kernel),
                "taylor_group": (int(fields["groups"].max()) + 1, *kernel),
                "taylor_channel": (site.in_channels, *site.kernel),
                "groups": (site.out_channels,),
            }


# How it is streamed

PASSES = {"l2": lambda s, **o: blocks(s, "l2", **o), "apoz": lambda s, **o: blocks(s, "apoz", **o), "taylor": blocks, "weights": weights}
every_pass = pytest.mark.parametrize("collect_from", PASSES.values(), ids=PASSES)


class Part:
    """Some samples of a split, which keep their places in it."""

    def __init__(self, whole: FakeSplit, which: slice) -> None:
        self.whole, self.places = whole, torch.arange(len(whole))[which]

    def __len__(self) -> int:
        return len(self.places)

    def batches(self, batch_size: int, *, indices: Tensor | None = None) -> Iterator[FakeBatch]:
        return self.whole.batches(batch_size, indices=self.places if indices is None else self.places[indices])


@every_pass
def test_two_halves_add_to_the_whole(collect_from) -> None:
    halves = [collect_from(Part(data(11), which)) for which in (slice(0, 4), slice(4, 11))]
    assert_same(halves[0] + halves[1], collect_from(data(11)))


@every_pass
def test_the_batch_size_does_not_matter(collect_from) -> None:
    expected = collect_from(data(11))
    for batch_size in (1, 4, 50):
        assert_same(collect_from(data(11), config=CalibrationConfig(batch_size=batch_size)), expected)


@every_pass
def test_a_choice_of_samples_is_seeded(collect_from) -> None:
    def seen(seed: int, samples: int = 7) -> list[int]:
        source = data(12)
        statistics = collect_from(source, config=CalibrationConfig(batch_size=3, samples=samples, seed=seed))
        places = torch.cat(source.seen).tolist()
        assert statistics.samples == len(places) == len(set(places)) == min(samples, 12)
        return places

    assert seen(0) == seen(0) != seen(1)
    assert seen(0) != list(range(7))
    assert seen(0, samples=99) == list(range(12))


def test_parts_of_other_passes_do_not_add() -> None:
    taylor = blocks(data())
    for other, key in (
        (weights(data()), "kind"),
        (blocks(data(), model=varied(seed=1)), "network"),
        (blocks(data(), config=CalibrationConfig(samples=3)), "samples"),
    ):
        with pytest.raises(UsageError, match=f"statistics differ in {key}: "):
            taylor + other
    with pytest.raises(UsageError, match="statistics differ in network"):
        weights(data()) + weights(data(), bake(varied(), {"ffp": masks(0.5)}))


# Interruption


class Interrupts(nn.Module):
    """Passes its input on until it was called `after` times, then raises once."""

    def __init__(self, error: type[BaseException], after: int) -> None:
        super().__init__()
        self.error, self.left = error, after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return x


def interrupted(model: nn.Module, error: type[BaseException], *, tried: int = 0) -> nn.Module:
    """`model` with a stop between two convolutions of the third batch (find_convolutions makes the first call, `tried` more follow)."""
    model.depthwise = nn.Sequential(Interrupts(error, after=4 + tried), model.depthwise)
    return model


SECOND_ORDER = {
    "fisher": Fisher(),
    "moments": InputSquares(),
    "moments in blocks": InputSquares(most=20),
    "errors of blocks": BlockErrors(),
}


@pytest.mark.parametrize("kind", ["l2", "taylor", "weights", *SECOND_ORDER])
@pytest.mark.parametrize("batch_size", [3, 4], ids=["same batches", "other batches"])
def test_an_interrupted_pass_goes_on_where_it_stopped(kind: str, batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**options: object) -> Statistics:
        if kind in SECOND_ORDER:
            return collect(model, source, SECOND_ORDER[kind], input_shape=SHAPE, **options)  # type: ignore[arg-type]
        return weights(source, model, **options) if kind == "weights" else blocks(source, kind, model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fisher, "MINI_BATCH", 1)
    source, model = data(11), interrupted(varied(), KeyboardInterrupt, tried=2 if kind == "l2" else 0)
    with pytest.raises(KeyboardInterrupt):
        run(config=SMALL, checkpoint=tmp_path / "c")
    assert Statistics.load(tmp_path / "c").samples == 6
    source.seen.clear()
    progress = Recorder()
    resumed = run(config=CalibrationConfig(batch_size=batch_size), checkpoint=tmp_path / "c", progress=progress)
    assert torch.cat(source.seen).tolist() == [6, 7, 8, 9, 10]
    if batch_size == 3:
        assert progress.loops == [(f"calibrating {resumed.kind}", 4, 2)]
    expected = run(config=SMALL)
    for name, fields in expected.layers.items():
        for key, value in fields.items():
            if batch_size == 3:
                assert torch.equal(resumed.layers[name][key], value), (name, key)
            else:
                torch.testing.assert_close(resumed.layers[name][key], value, **TOLERANCE)
    source.seen.clear()
    assert run(config=SMALL, checkpoint=tmp_path / "c").samples == 11
    assert source.seen == [], "a finished pass is not run again"


def test_a_crash_loses_no_more_than_the_time_since_the_last_save(tmp_path: Path) -> None:
    source, every_batch = data(11), CalibrationConfig(batch_size=3, checkpoint_every_s=0)
    source.fail_at = {2}
    with pytest.raises(ConnectionError):
        blocks(source, config=every_batch, checkpoint=tmp_path / "c")
    source.seen.clear()
    assert_same(blocks(source, config=every_batch, checkpoint=tmp_path / "c"), blocks(data(11)), exactly=True)
    assert torch.cat(source.seen).tolist() == [6, 7, 8, 9, 10]


def test_other_settings_or_another_network_start_afresh(tmp_path: Path) -> None:
    blocks(data(), checkpoint=tmp_path / "c")
    for changes in ({"criterion": "l1"}, {"model": varied(seed=1)}, {"config": CalibrationConfig(samples=2)}):
        expected = blocks(data(), **changes)  # type: ignore[arg-type]
        assert_same(blocks(data(), **changes, checkpoint=tmp_path / "c"), expected, exactly=True)  # type: ignore[arg-type]


# What a pass leaves behind


@every_pass
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ConnectionError])
def test_the_model_is_left_as_it_was(collect_from, error: type[BaseException] | None) -> None:
    model = varied() if error is None else interrupted(varied(), error)
    model.train()
    model.norm.eval()
    model.down.weight.requires_grad_(False)
    before = [(name, module, module.training) for name, module in model.named_modules()]
    flags = [(name, parameter, parameter.requires_grad, parameter.clone()) for name, parameter in model.named_parameters()]
    keep = {} if error is None else {"keep": {name: count for name, count in KEEP.items() if name != "depthwise"}}
    options = {"model": model, **(keep if collect_from in (PASSES["l2"], PASSES["apoz"]) else {})}
    source = data(11)
    if error is None:
        collect_from(source, **options)
    else:
        with pytest.raises(error):
            collect_from(source, **options)
    assert [(name, module, module.training) for name, module in model.named_modules()] == before
    for (name, parameter, flag, value), (name_now, now) in zip(flags, model.named_parameters(), strict=True):
        assert (name, flag) == (name_now, now.requires_grad)
        assert now is parameter
        assert torch.equal(now, value)
        assert now.grad is None
    assert not source.images.requires_grad


class WithoutCopies(FakeSplit):
    """Hands out the tensors that it keeps."""

    def batches(self, *args: object, **options: object) -> Iterator[FakeBatch]:
        yield FakeBatch(self.images, self.labels, torch.arange(len(self)))


def test_batches_that_the_source_keeps_stay_as_they_are() -> None:
    source = WithoutCopies(data().images, data().labels)
    blocks(source)
    assert not source.images.requires_grad
    assert source.images.grad is None


# What is refused


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(RunError, match="the calibration set is empty; name a data set with training samples"):
        blocks(data(0))


@every_pass
def test_output_that_is_not_finite_is_refused(collect_from) -> None:
    source = data()
    source.images[3, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="output is NaN or infinite on calibration data; check the checkpoint and the normalisation"):
        collect_from(source)


def test_a_network_without_convolutions_is_refused() -> None:
    with pytest.raises(UsageError, match="no convolution that can carry masks"):
        blocks(data(), model=nn.Sequential(nn.Flatten(), nn.Linear(105, 3)).double())


class Reaching(nn.Module):
    """A stem, a body and a head beside them; gradients reach what `kind` lets them reach."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem, self.body, self.aside = (nn.Conv2d(3, 3, 3, dtype=torch.float64, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.kind != "frozen stem"):
            x = self.stem(x)
        x = F.relu(x.detach() if self.kind == "detached" else x, inplace=True)
        y = self.aside(x)
        body = F.relu(self.body(x), inplace=True).mean((2, 3))
        if self.kind == "nothing":
            return body.detach()
        return body if self.kind != "gate" else body + (y.argmax(1).sum((1, 2)) % 2)[:, None]


@pytest.mark.parametrize("measure", [BlockScores(), WeightSums()])
@pytest.mark.parametrize(
    ("kind", "reached"),
    [("auxiliary head", "stem body"), ("gate", "stem body"), ("frozen stem", "body"), ("detached", "body")],
)
def test_layers_that_no_gradient_reaches_have_no_taylor_scores(measure: Measure, kind: str, reached: str, tmp_path: Path) -> None:
    got = collect(Reaching(kind), data(), measure, input_shape=SHAPE, config=SMALL, checkpoint=tmp_path / "c")
    assert [name for name, fields in got.layers.items() if "taylor" in fields] == reached.split()
    again = collect(Reaching(kind), data(), measure, input_shape=SHAPE, config=SMALL, checkpoint=tmp_path / "c")
    assert {name: fields.keys() for name, fields in again.layers.items()} == {name: fields.keys() for name, fields in got.layers.items()}
    twice = got + got
    assert torch.equal(twice.layers["body"]["taylor"], 2 * got.layers["body"]["taylor"])


def test_the_layers_after_a_frozen_stem_are_scored_as_without_it() -> None:
    frozen, free = (collect(Reaching(k), data(), BlockScores(), input_shape=SHAPE, config=SMALL) for k in ("frozen stem", "auxiliary head"))
    torch.testing.assert_close(frozen.layers["body"]["taylor"], free.layers["body"]["taylor"], **TOLERANCE)


@pytest.mark.parametrize("measure", [BlockScores(), WeightSums()])
def test_a_network_without_gradients_is_refused(measure: Measure) -> None:
    with pytest.raises(UsageError, match="no gradient reaches any convolution, which scores by gradients need; use --preset thesis"):
        collect(Reaching("nothing"), data(), measure, input_shape=SHAPE, config=SMALL)


# What the network meets while it is measured


class Curious(nn.Module):
    """A forward that looks at its convolution in every way, and writes to its input where `writes`."""

    def __init__(self, writes: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 3, 3, dtype=torch.float64)
        self.writes, self.seen = writes, set()

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if self.writes:
            x -= 0.5
            x[:, 0] = 0
        x = x.to(conv.weight.dtype) / conv.kernel_size[0] * conv.stride[0]
        self.seen.add((type(conv), tuple(self.state_dict()), tuple(name for name, _ in self.named_parameters()), id(conv), repr(self)))
        return conv(x).mean((2, 3)) if isinstance(conv, nn.Conv2d) and conv.bias is not None else x.mean((2, 3))


@every_pass
def test_the_network_meets_its_own_convolutions(collect_from) -> None:
    model = Curious()
    collect_from(data(), model=model, **({"keep": {"conv": 4}} if collect_from in (PASSES["l2"], PASSES["apoz"]) else {}))
    names = ("conv.weight", "conv.bias")
    assert model.seen == {(nn.Conv2d, names, names, id(model.conv), repr(Curious()))}


@every_pass
def test_hooks_act_around_what_is_measured(collect_from) -> None:
    def scaled(source: FakeSplit, model: nn.Module, by: float) -> Statistics:
        options = {"keep": {"conv": 4}} if collect_from in (PASSES["l2"], PASSES["apoz"]) else {}
        return collect_from(FakeSplit(source.images * by, source.labels), model=model, **options)

    hooked, plain = Curious(), Curious()
    calls: list[Tensor] = []
    hooked.conv.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))
    hooked.conv.register_forward_hook(lambda layer, inputs, output: calls.append(output))
    got, expected = scaled(data(), hooked, 1), scaled(data(), plain, 2)
    for key, value in expected.layers["conv"].items():
        assert torch.equal(got.layers["conv"][key], value), key
    trials = 2 if collect_from in (PASSES["l2"], PASSES["apoz"]) else 0
    assert len(calls) == 3 + trials, "one call to find the layer, two that try the order in memory where blocks are masked, two batches"


@every_pass
def test_a_network_may_write_to_its_input(collect_from) -> None:
    source = data()
    before = source.images.clone()
    options = {"keep": {"conv": 4}} if collect_from in (PASSES["l2"], PASSES["apoz"]) else {}
    got = collect_from(WithoutCopies(source.images, source.labels), model=Curious(writes=True), **options)
    assert torch.equal(source.images, before)
    shifted = source.images - 0.5
    shifted[:, 0] = 0
    expected = collect_from(FakeSplit(shifted, source.labels), model=Curious(), config=CalibrationConfig(batch_size=5), **options)
    for key, value in expected.layers["conv"].items():
        assert torch.equal(got.layers["conv"][key], value), key


# What is refused, further


def test_outputs_that_are_no_scores_of_the_classes_are_refused() -> None:
    few = data()
    few.labels[:] = 99
    for collect_from in (blocks, weights):
        with pytest.raises(RunError, match=r"outputs of shape \(3, 3\) for labels of shape \(3,\) up to 99; build it with more classes"):
            collect_from(few)

    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, dtype=torch.float64)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.conv(x).mean((2, 3))}

    with pytest.raises(RunError, match="the network returns dict, not one tensor of class scores; give a loss of such outputs"):
        blocks(data(), "taylor", Answer())
    assert blocks(data(), "l2", Answer()).samples == 5  # without a loss nobody asks what the outputs are


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="samples must be at least 1, got 0"):
        CalibrationConfig(samples=0)
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        CalibrationConfig(batch_size=0)
    with pytest.raises(UsageError, match=r"does not accept an input of shape 4x7x5: .*; give its input as --input CxHxW"):
        blocks(data(), input_shape=(4, 7, 5))
