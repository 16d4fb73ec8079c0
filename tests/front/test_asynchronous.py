"""Asynchronous training from the command line and from a recipe: training, fine-tuning a masked network, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from fineprune.common.errors import UsageError
from fineprune.models.training.distributed.config import AsyncConfig
from fineprune.recipe import finetune_of, read_recipe, train_config
from support.command import fineprune, succeed

SHORT = ["--epochs", 3, "--batch-size", 16, "--lr", 0.1, "--no-augment"]


def facts_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "training.json").read_text())


def test_a_network_is_trained_by_workers_and_fine_tuned_under_its_masks_by_workers(named: list[object], tmp_path: Path) -> None:
    asked = ["--trainer", "lc-asgd", "--workers", 3, "--trainer-arg", "lam=0.05"]
    result = succeed("train", *named, *SHORT, *asked, "--output", tmp_path / "trained")
    assert "virtual time" in result.err and "mean staleness" in result.err
    facts = facts_of(tmp_path / "trained")
    settings = facts["config"]["asynchronous"]
    assert (settings["algorithm"], settings["workers"], settings["lam"]) == ("lc-asgd", 3, 0.05)
    assert facts["config"]["momentum"] == 0 and facts["config"]["workers"] == 0
    assert facts["asynchronous"]["updates"] == sum(facts["asynchronous"]["staleness"].values())
    checkpoint = ["--checkpoint", tmp_path / "trained" / "model.safetensors"]
    pruning = ["--ffp", 0.3, "--fwp", 0.3, "--trainer", "asgd", "--workers", 2]
    bundle = succeed("compress", *named, *checkpoint, *pruning, *SHORT, "--output", tmp_path / "bundle", "--json").json()
    assert '"asynchronous.algorithm": "asgd"' in json.dumps(bundle)
    assert 0 < bundle["conv_macs_kept"] < 0.75


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--trainer", "lc-asgd", "--workers", 0], "workers is a whole number of at least 1, got 0"),
        (["--trainer", "nn-asgd"], "algorithm is one of sgd, ssgd, asgd, dc-asgd, lc-asgd"),
        (["--trainer", "lc-asgd", "--trainer-arg", "lam=-1"], "lam is at least 0, got -1"),
        (["--trainer", "lc-asgd", "--trainer-arg", "speed=1"], "asynchronous training is a table of algorithm, workers"),
        (["--trainer-arg", "lam=1"], "--trainer-arg belongs to a --trainer with a parameter server"),
        (["--trainer", "asgd", "--policy", "random"], "leave policy and record_losses out"),
        (["--trainer", "asgd", "--trainer-arg", "engine=ray", "--trainer-arg", "address=nowhere"], "Ray"),
    ],
)
def test_bad_requests_are_one_line(named: list[object], tmp_path: Path, arguments: list[object], text: str) -> None:
    result = fineprune("train", *named, *SHORT, *arguments, "--output", tmp_path / "out")
    assert result.code == 2 and text in result.err and len(result.err.strip().splitlines()) == 1


def test_divergence_is_one_line(named: list[object], tmp_path: Path) -> None:
    result = fineprune("train", *named, *SHORT, "--trainer", "asgd", "--lr", 1e14, "--output", tmp_path / "out")
    assert result.code == 1 and "train with a lower learning rate" in result.err.splitlines()[-1]


def recipe(folder: Path, train: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(f'[model]\nname = "resnet8"\n[data]\nspec = "digits"\n[train]\n{train}\n[compress]\nffp = 0.3\n[finetune]\n{train}\n')
    return path


def test_a_recipe_says_it_in_one_field(tmp_path: Path) -> None:
    line = 'asynchronous = { algorithm = "dc-asgd", workers = 8, time = { distribution = "stragglers" } }'
    settings = read_recipe(recipe(tmp_path, line))
    for config in (train_config(settings), finetune_of(settings)):
        assert config is not None and config.asynchronous == AsyncConfig(
            algorithm="dc-asgd",
            workers=8,
            time={"distribution": "stragglers"},  # type: ignore[arg-type]
        )
        assert config.momentum == 0
    with pytest.raises(UsageError, match=r"\[train\] workers is a whole number of at least 1, got 0"):
        read_recipe(recipe(tmp_path, "asynchronous = { workers = 0 }"))
