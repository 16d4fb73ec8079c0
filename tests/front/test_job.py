"""What is asked for becomes a job; what is left open is picked by the epochs that there are, and said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fineprune as package
from fineprune.asked import Asked
from fineprune.calibrate.collect import CalibrationConfig
from fineprune.compressor.bundle import Bundle
from fineprune.job import finetune_config
from fineprune.models.data import load_data
from fineprune.models.training.config import TrainConfig
from fineprune.recipe import job_of
from support.command import succeed


def decided(**settings: Any) -> tuple[str, str | None, bool, float | None, int | None]:
    """preset, schedule, whether it reconstructs, the share that is distilled, samples."""
    job = Asked(prune=settings.pop("prune", 0.6), **settings).job()
    distill = job.finetune and job.finetune.distill
    return job.preset, job.schedule and job.schedule.name, job.reconstruct is not None, distill and distill.share, job.calibration.samples


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"finetune": {"epochs": 0}}, ("obs", "rounds", True, None, 1024)),
        ({"finetune": {"epochs": 4}}, ("obs", "rounds", True, 0.9, 1024)),
        ({"finetune": {"epochs": 4, "distill": 0}}, ("obs", "rounds", True, None, 1024)),
        ({"finetune": {"epochs": 4, "distill": 0.5}}, ("obs", "rounds", True, 0.5, 1024)),
        ({"finetune": TrainConfig(epochs=4)}, ("obs", "rounds", True, None, 1024)),
        ({"reconstruct": False}, ("taylor", None, False, None, None)),
        ({"prune_schedule": "cubic"}, ("taylor", "cubic", False, None, None)),
        ({"prune_schedule": "one-shot"}, ("obs", None, True, 0.9, 1024)),
        ({"fwp": {"criterion": "fisher"}}, ("obs", None, True, 0.9, 1024)),
        ({"fwp": {"include": ("a",), "criterion": None}}, ("obs", "rounds", True, 0.9, 1024)),
        ({"calibration": CalibrationConfig(samples=77)}, ("obs", "rounds", True, 0.9, 77)),
        ({"measured": True}, ("obs", None, True, 0.9, None)),
        ({"preset": "taylor"}, ("taylor", None, False, None, None)),
        ({"preset": "taylor", "finetune": {"epochs": 0}}, ("taylor", None, True, None, None)),
        ({"preset": "obs"}, ("obs", None, False, None, None)),
    ],
)
def test_what_is_open_is_picked(settings: dict[str, Any], expected: tuple[object, ...]) -> None:
    assert decided(**settings) == expected


def test_a_recipe_picks_alike() -> None:
    settings: dict[str, Any] = {"compress": {"prune": 0.6}, "finetune": {"epochs": 3}}
    assert job_of(settings).to_json() == Asked(prune=0.6, finetune={"epochs": 3}).job().to_json()


def test_a_line_says_what_was_picked(trained: list[object], data: str, tmp_path: Path) -> None:
    result = succeed("compress", *trained, "--prune", 0.5, "--epochs", 1, "--output", tmp_path / "b")
    said = "preset obs, kept weights refitted, in 4 rounds, 0.9 of the loss from the dense network, calibrated on 1024 images at most"
    assert f"no preset is named; picked for 1 epoch of fine-tuning: {said}" in " ".join(result.err.split())
    facts = Bundle.load(tmp_path / "b").facts
    assert facts["settings"]["preset"] == "obs" and facts["settings"]["prune_schedule"] == {"name": "rounds", "rounds": 4}
    named = succeed("compress", *trained, "--prune", 0.5, "--epochs", 0, "--preset", "taylor", "--output", tmp_path / "c")
    assert "picked" not in named.err


def test_the_seed_draws_the_calibration_samples(data: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    options: dict[str, Any] = {"prune": 0.7, "preset": "obs", "epochs": 0, "samples": 5, "reconstruct": False}
    masks = [package.compress(model, load_data(data), seed=seed, **options).masks["fwp"]["0"] for seed in (0, 0, 3)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_no_share_of_the_teacher_is_no_teacher() -> None:
    for nothing in (0, 0.0, {"share": 0, "temperature": 2.0}):
        config = finetune_config(epochs=1, distill=nothing)
        assert config is not None and config.distill is None
