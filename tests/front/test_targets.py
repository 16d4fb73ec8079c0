"""Targets: what is asked is reached or refused with what can be; times of another machine; figures that are kept and gone on with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fineprune as package
from fineprune.common.errors import RunError, UsageError
from fineprune.common.progress import Silent
from fineprune.compressor.search.levels import DENSE, Level
from fineprune.export.benchmark import Latency
from fineprune.models.data import load_data
from fineprune.samples import data_of
from fineprune.search import run as search
from fineprune.search.drop import Drop, judged_on
from fineprune.search.target import Target, target_of
from fineprune.search.times import LayerTimes, Machine
from support.command import fineprune, succeed

QUICK: dict[str, Any] = {"samples": 40, "epochs": 0, "reconstruct": {"images": 30}, "prune_schedule": "one-shot"}
LEVELS = [0.3, 0.6, 0.9]


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False), nn.ReLU(),
            nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )  # fmt: skip


SHAPES = {"0": (6, 1, 3, 3), "3": (8, 6, 3, 3), "5": (8, 8, 3, 3)}


def times(scale: float = 1.0, **changes: Any) -> LayerTimes:
    """A machine on which a layer's time is what is kept of it, and a network takes that and 0.1 ms, `scale` times."""
    dense = {"0": 1e-3, "3": 2e-3, "5": 4e-3}
    levels = [DENSE, *(Level(fwp=ratio) for ratio in LEVELS)]
    layers = {name: {level: seconds * (1 - level.fwp) for level in levels} for name, seconds in dense.items()}
    whole = {level: scale * (1e-4 + sum(of_layer[level] for of_layer in layers.values())) for level in levels}
    return LayerTimes(**{"layers": layers, "whole": whole, "reference": 8e-3, "shapes": SHAPES, **changes})


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of another machine's times."""
    path = tmp_path_factory.mktemp("times") / "pi5.json"
    times().save(path)
    return path


def test_multiply_adds_are_what_is_asked(data: str) -> None:
    bundle = package.compress(network(), load_data(data), target_macs=0.45, **QUICK)
    assert 0.40 < bundle.facts["conv_macs_kept"] <= 0.45
    found = bundle.facts["search"]
    assert set(found["levels"]) == {"0", "3", "5"}
    for name, level in found["levels"].items():
        mask = bundle.masks["fwp"].get(name)
        kept = 1.0 if mask is None else float(mask.float().mean())
        assert kept == pytest.approx(1 - level["fwp"], abs=0.02)
    assert len({level["fwp"] for level in found["levels"].values()}) > 1
    assert found["end"]["kept"]
    with pytest.raises(RunError, match=r"1% of the multiply-adds cannot be reached: .* at least 5\.\d% stay"):
        package.compress(network(), load_data(data), target_macs=0.01, **QUICK)


def test_a_latency_of_another_machine(data: str, there: Path) -> None:
    bundle = package.compress(network(), load_data(data), target_latency="3ms", times=there, levels=LEVELS, **QUICK)
    found = bundle.facts["search"]
    levels = {name: Level(**level) for name, level in found["levels"].items()}
    assert found["expected_ms"] == pytest.approx(times().expected(levels) * 1e3)
    assert found["expected_ms"] <= 3.0
    assert found["measured_ms"] is None
    assert found["end"]["latency_ms"] is None
    relative = package.compress(network(), load_data(data), target_latency="0.375x", times=there, levels=LEVELS, **QUICK)
    assert relative.facts["search"]["levels"] == found["levels"]


@pytest.mark.parametrize(
    ("latency", "words"),
    [
        ("0.1ms", r"0\.1ms cannot be reached: the fastest that these levels give is 0\.8 ms \(0\.10x of .* 8 ms\)"),
        ("1x", "nothing to prune"),
    ],
)
def test_what_cannot_be_reached_is_refused(data: str, there: Path, latency: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        package.compress(network(), load_data(data), target_latency=latency, times=there, levels=LEVELS, **QUICK)


def test_the_choice_is_corrected_by_what_is_measured(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which whole networks take 1.3 times what is expected of them."""
    dense = {"0": 1e-3, "3": 2e-3, "5": 4e-3}
    levels = [Level(fwp=number / 20) for number in range(1, 20)]
    layers = {name: {level: seconds * (1 - level.fwp) for level in (DENSE, *levels)} for name, seconds in dense.items()}

    def latency(self: Machine, masked: nn.Module) -> tuple[Latency, Latency]:
        masks = {name: getattr(masked.get_submodule(name), "weight_mask", None) for name in dense}
        kept = {name: 1.0 if mask is None else float(mask.float().mean()) for name, mask in masks.items()}
        seconds = 1.3 * (1e-4 + sum(dense[name] * kept[name] for name in dense))
        facts: dict[str, Any] = dict.fromkeys(Latency.__dataclass_fields__, 0)
        row = Latency(**{**facts, "runtime": "engine", "median_ms": seconds * 1e3, "speedup": 8e-3 / seconds})
        return row, replace(row, runtime="dense")

    monkeypatch.setattr(Machine, "times", lambda self, *given: times(layers=layers))
    monkeypatch.setattr(Machine, "latency", latency)
    bundle = package.compress(network(), load_data(data), target_latency="4ms", levels=levels, **QUICK)
    found = bundle.facts["search"]
    assert len(found["rounds"]) > 1
    assert found["rounds"][0]["measured_ms"] > 4 * 1.05
    assert found["measured_ms"] == pytest.approx(4, rel=0.05)
    assert found["end"]["latency_ms"] == pytest.approx(4, rel=0.05)
    assert found["end"]["kept"]


def test_a_measurement_that_misses_is_no_refusal(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole networks take so long by chance; only the fastest choice that does says what cannot be reached."""
    facts: dict[str, Any] = dict.fromkeys(Latency.__dataclass_fields__, 0)
    row = Latency(**{**facts, "runtime": "engine", "median_ms": 5.0, "speedup": 8 / 5})
    monkeypatch.setattr(Machine, "times", lambda self, *given: times())
    monkeypatch.setattr(Machine, "latency", lambda self, masked: (row, row))
    monkeypatch.setattr(search, "ROUNDS", 1)
    bundle = package.compress(network(), load_data(data), target_latency="4ms", levels=LEVELS, **QUICK)
    assert bundle.facts["search"]["end"] == {"kept": False, "latency_ms": 5.0, "drop": None}
    with pytest.raises(RunError, match=r"0\.5ms cannot be reached: the fastest .* is 5 ms"):
        package.compress(network(), load_data(data), target_latency="0.5ms", levels=LEVELS, **QUICK)


def test_what_layers_take_and_the_rest_are_told_apart() -> None:
    rest, scale = times(2.0).fit
    assert (rest, scale) == (pytest.approx(2e-4), pytest.approx(2.0))
    whole = times().whole
    left_to_others = {level: 7.1e-3 if level.fwp < 0.5 else seconds for level, seconds in whole.items()}
    assert times(whole=left_to_others).fit == (pytest.approx(1e-4), pytest.approx(1.0))


def test_a_drop_is_judged_by_differences_of_the_same_samples() -> None:
    images, labels = torch.eye(4).repeat(25, 1).view(100, 4, 1, 1), torch.arange(100) % 4
    samples = data_of((images, labels), validation=None, test=None, seed=0, objective=None, forward=None, progress=Silent())
    exact, wrong = nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        wrong[1].weight.copy_(torch.eye(4))
        wrong[1].weight[3] = 0.0  # samples of the last class get the first
    same = Drop.figures(exact, samples, "cpu", Silent())
    none = Drop.between(exact, same, samples, "cpu", Silent())
    assert (none.lost, same.mean()) == (0.0, 1.0)
    assert 0.4 * 300 / none.samples < none.bound < 300 / none.samples  # 3 / N is the exact bound where none of N differs
    lost = Drop.between(wrong, same, samples, "cpu", Silent())
    share = float((judged_on(samples)[1].labels == 3).double().mean())
    more, mean = lost.samples + 2, share * lost.samples / (lost.samples + 2)
    spread = ((share * lost.samples + 1 - more * mean**2) / (more - 1) / more) ** 0.5
    assert lost.lost == pytest.approx(100 * share)
    assert lost.bound == pytest.approx(100 * (mean + 1.645 * spread))
    assert lost.kept(lost.bound) and not lost.kept(lost.bound - 0.01)


def test_times_of_this_machine_are_measured_once(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(Machine, "times", lambda self, *given: made.append(1) or times())

    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Machine, "latency", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            package.compress(network(), load_data(data), target_latency="3ms", levels=LEVELS, output=tmp_path / "out", **QUICK)
    assert made == [1]


def test_a_largest_drop_is_kept_on_validation_samples(data: str, trained: list[object], there: Path, tmp_path: Path) -> None:
    quick = ["--samples", 40, "--epochs", 0, "--level", 0.3, "--level", 0.6, "--level", 0.9, "--prune-schedule", "one-shot"]
    profile = tmp_path / "times.json"
    succeed("profile", *trained, "--level", 0.3, "--level", 0.6, "--level", 0.9, "--output", profile)
    facts = json.loads(profile.read_text())
    seconds = [1e-3 * (1 - level["fwp"]) for level in facts["levels"]]  # the network is too small for times that can be told apart
    facts |= {"layers": [{**layer, "seconds": seconds} for layer in facts["layers"]], "whole_seconds": [5 * one for one in seconds]}
    profile.write_text(json.dumps(facts))
    result = succeed("compress", *trained, *quick, "--max-drop", 60, "--times", profile, "--output", tmp_path / "loose", "--json")
    facts = result.json()["search"]
    assert facts["drop"]["bound"] <= 60
    assert len(facts["tried"]) > 1
    assert facts["end"]["kept"]
    assert "solve 1 of 6" in result.err
    refused = fineprune("compress", *trained, *quick, "--max-drop", 0, "--times", profile, "--output", tmp_path / "strict")
    if refused.code:
        assert "no choice of levels keeps a drop of 0" in refused.err
    else:  # the lightest levels lose nothing
        assert json.loads((tmp_path / "strict" / "manifest.json").read_text())["search"]["drop"]["bound"] <= 0


def test_an_interrupted_search_goes_on(data: str, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"target_latency": "3ms", "times": there, "levels": LEVELS, "progress": Silent(), **QUICK}
    whole = package.compress(network(), load_data(data), output=tmp_path / "whole", **options)

    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(search.Search, "_by_latency", stopped)
        with pytest.raises(KeyboardInterrupt):
            package.compress(network(), load_data(data), output=tmp_path / "again", **options)
    kept = json.loads((tmp_path / "again.work" / "search" / "sensitivity.json").read_text())
    assert len(kept["rows"]) == 9
    with monkeypatch.context() as patched:
        patched.setattr(
            "fineprune.search.sensitivity.sensitivities", lambda *given, done, **others: iter(()) if len(done) == 9 else stopped()
        )
        again = package.compress(network(), load_data(data), output=tmp_path / "again", **options)
    assert again.facts["search"]["levels"] == whole.facts["search"]["levels"]
    assert all(torch.equal(again.weights[name], value) for name, value in whole.weights.items())


def test_a_file_of_times_is_checked(data: str, there: Path, tmp_path: Path) -> None:
    loaded = LayerTimes.load(there)
    assert loaded == times()
    options = {"target_latency": "3ms", "levels": LEVELS, **QUICK}
    facts = json.loads(there.read_text())
    for changes, words in (
        ({"layers": [*facts["layers"][:1], {**facts["layers"][1], "name": "other"}]}, "times of another network .other"),
        ({"int8": True}, "measured with int8=True, and False is asked for"),
        ({"unit": "quad"}, "measured with unit=quad, and weight is asked for"),
        ({"whole_seconds": [1.0]}, "no times of layers as this version writes them"),
        ({"levels": "all"}, "levels"),
    ):
        path = tmp_path / "wrong.json"
        path.write_text(json.dumps({**facts, **changes}))
        with pytest.raises(RunError, match=words):
            package.compress(network(), load_data(data), times=path, **options)
    with pytest.raises(UsageError, match="there is no file"):
        package.compress(network(), load_data(data), times=tmp_path / "none.json", **options)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_latency": "fast"}, "target_latency is a time such as 2.5ms"),
        ({"target_latency": "0x"}, "target_latency is a time"),
        ({"target_latency": "1ms", "target_macs": 0.5}, "not both"),
        ({"target_macs": 28}, r"target_macs is the fraction .* in \(0, 1\), got 28"),
        ({"max_drop": -1}, "max_drop is points"),
        ({"max_drop": 1, "threads": 0}, "threads is a whole number"),
        ({"threads": 2}, "threads belongs to a target"),
        ({"target_macs": 0.5, "times": "x.json"}, "target_macs needs none"),
        ({"target_macs": 0.5, "levels": [2]}, "levels are weight ratios"),
    ],
)
def test_targets_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        target_of(**settings)


def test_a_target_stands_in_the_place_of_ratios(data: str) -> None:
    for others, words in (
        ({"prune": 0.5}, "finds the ratios of all layers"),
        ({"fwp": {"per_layer": {"0": 0.5}}}, "finds the ratios of all layers"),
        ({"prune_schedule": "cubic", "epochs": 2, "reconstruct": False}, "searched for before the fine-tuning"),
        ({"statistics": "somewhere"}, "calibrates by itself"),
    ):
        with pytest.raises(UsageError, match=words):
            package.compress(network(), load_data(data), target_macs=0.5, **{**QUICK, **others})
    assert Target(latency="400us").seconds(1.0) == pytest.approx(4e-4)
    assert Target(latency="0.4x").seconds(2e-3) == pytest.approx(8e-4)


def test_sensitivity_is_kept_and_gone_on_with(data: str, trained: list[object], tmp_path: Path) -> None:
    path, plot = tmp_path / "sensitivity.json", tmp_path / "sensitivity.png"
    options = ["--level", 0.5, "--level", 0.9, "--samples", 40, "--measured", 30, "--no-times", "--output", path]
    first = succeed("sensitivity", *trained, *options, "--plot", plot)
    assert "one layer pruned at a time" in " ".join(first.out.split())
    assert plot.read_bytes().startswith(b"\x89PNG")
    kept = json.loads(path.read_text())
    names = {row["layer"] for row in kept["rows"]}
    assert len(kept["rows"]) == 2 * len(names) > 4
    assert all(row["error"] >= 0 and 0 <= row["accuracy"] <= 1 and row["loss"] > 0 for row in kept["rows"])
    kept["rows"] = kept["rows"][:3]
    kept["rows"][0]["error"] = 7.0
    path.write_text(json.dumps(kept))
    again = succeed("sensitivity", *trained, *options, "--json").json()
    assert len(again["rows"]) == 2 * len(names)
    assert again["rows"][0]["error"] == 7.0  # measured before
    more = succeed("sensitivity", *trained, "--level", 0.7, *options, "--json").json()
    assert len(more["rows"]) == 3 * len(names)
    assert more["rows"][0]["error"] == 7.0  # of a level that was there before
    replaced = fineprune("sensitivity", *trained, *options, "--seed", 1, "--json")
    assert replaced.json()["rows"][0]["error"] != 7.0
    assert "figures of other settings, which are replaced" in replaced.err
    path.write_text('{"rows": []}')
    assert "key is missing; it is no file of this kind" in fineprune("sensitivity", *trained, *options).err
    text = tmp_path / "notes.txt"
    text.write_text("mine")
    for command in (["sensitivity", *trained, "--no-times"], ["profile", *trained]):
        assert "is not named as a JSON file" in fineprune(*command, "--output", text).err
    assert text.read_text() == "mine"


def test_sensitivity_of_other_outputs_than_classes() -> None:
    x = torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    facts = package.sensitivity(model, x, levels=[0.5], times=False, samples=20, measured=8, progress=Silent())
    assert facts["measure"].startswith("relative error")
    assert [row["layer"] for row in facts["rows"]] == ["0", "2"]
    assert all(row["error"] > 0 for row in facts["rows"])
