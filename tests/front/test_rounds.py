"""Masks that come in rounds: each is a compression at once of what the round before left, refitted; a run is resumed exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fineprune as package
from fineprune import compression
from fineprune.calibrate.collect import CalibrationConfig
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.config import prune_config
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.compressor.reconstruct.run import ReconstructConfig, reconstruct
from fineprune.models.data import load_data
from fineprune.schedules import Rounds
from support.command import fineprune, succeed

ROUNDS: dict[str, Any] = {"name": "rounds", "rounds": 3}
OPTIONS: dict[str, Any] = {
    "preset": "obs",
    "prune": 0.6,
    "prune_schedule": ROUNDS,
    "samples": 40,
    "epochs": 0,
    "reconstruct": {"images": 30},
}


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 10),
        )  # fmt: skip


def test_each_round_drops_the_same_share_of_what_is_left() -> None:
    ratios = [Rounds(rounds=4).ratio(done, 0.7) for done in range(1, 5)]
    left = 1.0
    for ratio in ratios:
        left *= 0.3**0.25
        assert 1 - ratio == pytest.approx(left)
    assert ratios[-1] == 0.7


def test_rounds_are_compressions_one_after_the_other(data: str) -> None:
    loaded, dense = load_data(data), network()
    bundle = package.compress(dense, loaded, seed=5, **OPTIONS)
    model: nn.Module = dense
    for done, ratio in enumerate((1 - 0.4 ** (1 / 3), 1 - 0.4 ** (2 / 3), 0.6), start=1):
        config = CalibrationConfig(samples=40, seed=5 + 3 - done)
        run = CalibrationRun(source=loaded.train, input_shape=loaded.input_shape, config=config)
        pruned = prune(model, prune_config("obs", ratio=ratio), run)
        if done == 3:  # the last refit is that of the bundle's seed
            run = CalibrationRun(source=loaded.train, input_shape=loaded.input_shape, config=CalibrationConfig(samples=40, seed=5))
        reconstruct(dense, pruned.model, run, ReconstructConfig(images=30))
        model = pruned.model
    for name in ("0", "3"):
        assert torch.equal(bundle.masks["fwp"][name], pruned.masks["fwp"][name])
        assert torch.equal(bundle.weights[f"{name}.weight"], model.state_dict()[f"{name}.weight"])
    at_once = package.compress(dense, loaded, seed=5, **{**OPTIONS, "prune_schedule": "one-shot"})
    assert not torch.equal(at_once.masks["fwp"]["3"], bundle.masks["fwp"]["3"])
    assert bundle.facts["conv_macs_kept"] == pytest.approx(at_once.facts["conv_macs_kept"], abs=0.01)
    assert bundle.facts["settings"]["prune_schedule"] == ROUNDS


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_same_bundle(data: str, tmp_path: Path, stopped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, calls = load_data(data), []
    whole = package.compress(network(), loaded, **OPTIONS)
    refit = compression.reconstruct_network

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == stopped:
            raise KeyboardInterrupt
        return refit(*given)

    monkeypatch.setattr(compression, "reconstruct_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        package.compress(network(), loaded, output=tmp_path / "b", **OPTIONS)
    kept = {path.name for path in (tmp_path / "b.work").iterdir()}
    assert {f"round-{done}" for done in range(1, stopped + 1)} <= kept
    again = package.compress(network(), loaded, output=tmp_path / "b", **OPTIONS)
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())


def test_manifest_and_lines_say_so(trained: list[object], tmp_path: Path) -> None:
    options = ["--prune", 0.6, "--prune-schedule", "rounds", "--prune-schedule-arg", "rounds=2", "--samples", 60, "--epochs", 0]
    result = succeed("compress", *trained, *options, "--output", tmp_path / "b")
    assert "round 1 of 2" in result.err and "round 2 of 2" in result.err
    assert Bundle.load(tmp_path / "b").facts["settings"]["prune_schedule"] == {"name": "rounds", "rounds": 2}
    succeed("report", tmp_path / "b", "--output", tmp_path / "page.html")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prune", 0.4, "--no-reconstruct"], "refits the kept weights between rounds; leave reconstruct on, or prune at once"),
        (["--prune", 0.4, "--prune-schedule-arg", "rounds=0"], "prune_schedule: rounds is a whole number of at least 1, got 0"),
        (["--prune", 0.4, "--prune-schedule-arg", "share=1"], "prune_schedule rounds has unknown share; it takes rounds"),
        (["--prune", 0.4, "--statistics", "."], "statistics belong to masks made at once"),
        (
            ["--fwp", 0.5, "--fwp-criterion", "2:4", "--fwp-scope", "layer"],
            "prune_schedule 'rounds' begins with less than is asked for: the FWP criterion '2:4' drops 0.5",
        ),
    ],
)
def test_what_cannot_be_is_one_line(trained: list[object], tmp_path: Path, options: list[object], said: str) -> None:
    result = fineprune("compress", *trained, "--prune-schedule", "rounds", *options, "--epochs", 0, "--output", tmp_path / "b")
    assert result.code == 2 and said in result.err and len(result.err.strip().splitlines()) == 1


def test_an_untrained_network_is_warned_about_as_where_masks_come_at_once(named: list[object], data: str, tmp_path: Path) -> None:
    result = succeed("compress", *named, "--prune", 0.5, "--samples", 40, "--epochs", 0, "--output", tmp_path / "b")
    assert "the weights are random" in result.err and "is chance level" in result.err
