"""Learning rates by hand, and every setting that is refused."""

import math

import pytest

from fineprune.common.errors import UsageError
from fineprune.models.training import TrainConfig
from fineprune.models.training.schedule import LearningRate


def rates(config: TrainConfig, batches: int = 2) -> list[float]:
    rate = LearningRate(config)
    return [rate.at(epoch, batch, batches) for epoch in range(config.epochs) for batch in range(batches)]


def test_constant() -> None:
    assert rates(TrainConfig(epochs=2, lr=0.3, schedule="constant")) == [0.3] * 4


def test_multistep_drops_after_the_milestones_epochs() -> None:
    got = rates(TrainConfig(epochs=4, lr=1.0, schedule="multistep", milestones=(1, 3)))
    assert got == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_falls_batch_by_batch_to_the_least_rate() -> None:
    got = rates(TrainConfig(epochs=2, lr=1.0, min_lr=0.2))
    assert got == pytest.approx([0.2 + 0.8 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])


def test_warm_up_rises_batch_by_batch_and_cosine_starts_after_it() -> None:
    got = rates(TrainConfig(epochs=4, lr=1.0, warmup_epochs=2))
    assert got[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert got[4:] == pytest.approx([(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])


def test_plateau_waits_drops_and_stops_at_the_least_rate() -> None:
    config = TrainConfig(epochs=20, lr=1.0, schedule="plateau", patience_epochs=1, gamma=0.1, min_lr=0.05)
    rate, got = LearningRate(config), []
    for loss in (3.0, 2.0, 2.0, 2.5, 1.0, 1.1, 1.2, 1.3):
        rate.observe(loss)
        got.append(rate.at(0, 0, 1))
    assert got == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.05, 0.05])
    again = LearningRate.from_json(config, rate.to_json())
    assert again == rate


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"epochs": 0}, "epochs is a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size is a whole number of at least 1, got 2.5"),
        ({"seed": -1}, "seed is a whole number of at least 0 and at most .*, got -1"),
        ({"optimizer": "lion"}, "optimizer is one of sgd, adam, adamw, got 'lion'"),
        ({"schedule": "steps"}, "schedule is one of constant, multistep, cosine, plateau, auto"),
        ({"precision": "int8"}, "precision is one of auto, float32, bfloat16, float16"),
        ({"lr": 0.0}, "lr is above 0, got 0.0"),
        ({"lr": math.nan}, "lr is above 0, got nan"),
        ({"lr": "0.1"}, "lr is above 0, got '0.1'"),
        ({"momentum": 1.0}, r"momentum is in \[0,1\), got 1.0"),
        ({"weight_decay": -1e-4}, "weight_decay is at least 0"),
        ({"gamma": 1.0}, r"gamma is in \(0,1\)"),
        ({"min_lr": 0.2}, r"min_lr is in \[0, lr=0.1\], got 0.2"),
        ({"warmup_epochs": 20}, "warmup_epochs is at least 0 and below epochs=20, got 20"),
        ({"label_smoothing": 1.0}, r"label_smoothing is in \[0,1\)"),
        ({"checkpoint_every_s": -1}, "checkpoint_every_s is at least 0"),
        ({"max_grad_norm": 0}, "max_grad_norm is above 0, or none"),
        ({"schedule": "multistep"}, "multistep schedule needs increasing milestones"),
        ({"schedule": "multistep", "milestones": (3, 2)}, r"needs increasing milestones .* got \[3, 2\]"),
        ({"milestones": (3,)}, "milestones belong to the multistep schedule, not to cosine"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs the sgd optimizer and a momentum"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov needs the sgd optimizer"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        TrainConfig(**setting)
