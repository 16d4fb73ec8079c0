"""Data pruning from the command line and from a recipe: options, reports, predictions, refusals."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fineprune.common.errors import UsageError
from fineprune.recipe import read_recipe, train_config
from support.command import TRAINING, fineprune, succeed

POLICY = ["--policy", "fine-pruning", "--policy-arg", "window=4", "--policy-arg", "start=1", "--policy-arg", "fraction=0.5"]


@pytest.fixture(scope="module")
def pruned(folder: Path, named: list[object]) -> Path:
    """The output of a pruned training with the automatic rate and a report on suspects."""
    automatic = ["--schedule", "auto", "--auto-arg", "interval=2", "--auto-arg", "threshold=0.5", "--auto-arg", "max_drops=none"]
    result = succeed("train", *named, *TRAINING, *POLICY, *automatic, "--suspects", 7, "--output", folder / "pruned")
    assert "fine-pruning: " in result.err and "training time saved: predicted" in result.err
    assert all(f"wrote {folder / 'pruned' / name}\n" in result.out for name in ("auto_lr.png", "suspects.csv", "suspects-high-loss.png"))
    return folder / "pruned"


def facts_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "training.json").read_text())


def test_facts_hold_the_policy_the_visits_and_the_saving(pruned: Path) -> None:
    facts = facts_of(pruned)
    assert facts["config"]["policy"]["fraction"] == 0.5 and facts["config"]["auto_lr"]["max_drops"] is None
    assert [record["visits"] for record in facts["history"]] == [216, 108, 108, 216, 108, 108, 108, 216]
    assert 0.1 < facts["saving"]["predicted"] <= 5 / 16  # of so short epochs much is validation and overhead
    assert facts["history"][-1]["lr"] < facts["config"]["lr"]
    assert "losses" not in facts


def test_suspects_are_listed_with_their_curves(pruned: Path) -> None:
    rows = list(csv.DictReader((pruned / "suspects.csv").read_text().splitlines()))
    assert [row["view"] for row in rows] == ["high-loss"] * 7 + ["most-pruned"] * 7
    assert [int(row["rank"]) for row in rows] == [*range(1, 8), *range(1, 8)]
    means = [float(row["mean_loss"]) for row in rows[:7]]
    assert means == sorted(means, reverse=True)
    for row in rows:
        curve = [float(row[f"loss_{e}"]) for e in range(1, 9) if row[f"loss_{e}"]]
        assert len(curve) == int(row["visits"]) == 8 - int(row["pruned_epochs"])
        assert float(row["mean_loss"]) == pytest.approx(sum(curve) / len(curve), abs=1e-3)
    assert int(rows[7]["pruned_epochs"]) >= max(int(row["pruned_epochs"]) for row in rows[:7])


def test_pictures_are_there_and_not_empty(pruned: Path) -> None:
    for name in ("auto_lr.png", "suspects-high-loss.png", "suspects-most-pruned.png"):
        with Image.open(pruned / name) as image:
            assert min(image.size) > 150 and len(image.convert("L").getcolors(256) or ()) > 20


def test_an_unpruned_run_has_suspects_but_no_pruned_ones(named: list[object], tmp_path: Path) -> None:
    succeed("train", *named, *TRAINING, "--epochs", 1, "--suspects", 3, "--output", tmp_path / "plain")
    assert (tmp_path / "plain" / "suspects-high-loss.png").exists()
    assert not (tmp_path / "plain" / "suspects-most-pruned.png").exists()
    assert facts_of(tmp_path / "plain")["saving"] is None


def test_fine_tuning_may_prune_too(trained: list[object], tmp_path: Path) -> None:
    result = succeed("compress", *trained, "--ffp", 0.3, "--epochs", 4, "--batch-size", 16, *POLICY, "--output", tmp_path / "b")
    facts = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert facts["settings"]["finetune"]["policy"]["name"] == "fine-pruning"
    assert [record["visits"] for record in facts["training"]["finetune"]["history"]] == [216, 108, 108, 216]
    assert "training time saved" in result.err


def test_fine_tuning_that_a_policy_does_not_fit_is_refused_before_calibration(trained: list[object], tmp_path: Path) -> None:
    result = fineprune("compress", *trained, "--ffp", 0.3, "--epochs", 1, "--batch-size", 16, *POLICY, "--output", tmp_path / "b")
    assert result.code == 2 and "prunes none of the 1 epochs" in result.err and "accuracy" not in result.err


RECIPE = """
[model]
name = "lenet"
[data]
spec = "digits"
[train]
epochs = 12
schedule = "auto"
auto_lr = {{ interval = 3 }}
policy = {policy}
[compress]
ffp = 0.3
[finetune]
policy = "infobatch"
"""


def test_a_recipe_names_a_policy_or_gives_a_table(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(policy='{ name = "random", fraction = 0.4 }'))
    config = train_config(read_recipe(path))
    assert (config.policy.name, config.policy.fraction, config.auto_lr.interval) == ("random", 0.4, 3)
    for policy, text in (
        ('"fine"', r"\[train\] policy is one of none"),
        ("3", "policy is a name or a table"),
        ("{ name = 3 }", "policy is one"),
    ):
        path.write_text(RECIPE.format(policy=policy))
        with pytest.raises(UsageError, match=text):
            read_recipe(path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--policy-arg", "fraction=0.5"], "--policy-arg belongs to --policy; name the policy, too"),
        (["--policy", "random", "--policy-arg", "fraction"], "--policy-arg is KEY=VALUE such as fraction=0.25, got 'fraction'"),
        (["--policy", "random", "--policy-arg", "name=none"], "--policy-arg gives parameters; the name belongs to --policy"),
        (["--policy", "random", "--policy-arg", "fraction=lots"], "policy random: fraction is in (0,1), got 'lots'"),
        (["--policy", "random", "--policy-arg", "size=1"], "policy has unknown size; random takes window"),
        (["--auto-arg", "interval=3"], "auto_lr belongs to the auto schedule, not to cosine"),
        (["--suspects", "0"], "--suspects is at least 1, got 0"),
        (["--policy", "random", "--batch-size", "180"], "policy random leaves 162 of 216 training images, fewer than a batch of 180"),
    ],
)
def test_a_bad_request_is_one_line_before_any_work(named: list[object], tmp_path: Path, options: list[str], text: str) -> None:
    result = fineprune("train", *named, *options, "--output", tmp_path / "t")
    assert result.code == 2 and text in result.err and len(result.err.splitlines()) == 1
    assert not (tmp_path / "t" / "training.pt").exists()


class TestPlan:
    def test_it_predicts_what_the_run_does(self, pruned: Path, data: str) -> None:
        facts = facts_of(pruned)
        plan = succeed("plan-training", "--data", data, "--epochs", 8, "--batch-size", 16, *POLICY, "--json").json()
        assert plan["visits_by_epoch"] == [record["visits"] for record in facts["history"]]
        assert plan["saved"] == pytest.approx(5 / 16, abs=0.01) and plan["saved"] >= facts["saving"]["predicted"]

    def test_the_sources_settings_with_times(self) -> None:
        out = succeed("plan-training", "--epochs", 160, "--samples", 50_000, "--epoch-seconds", 20, "--validation-seconds", 1.5).out
        assert "prunes 93 of 160 epochs: 6,837,500 of 8,000,000 sample visits" in out
        assert "training time saved: 13.55% (thesis formula 11.72%)" in out and "57 min 20 s become 49 min 34 s" in out

    def test_infobatch_says_what_it_assumes(self) -> None:
        out = succeed("plan-training", "--epochs", 16, "--samples", 1000, "--policy", "infobatch", "--below-mean", 0.8).out
        assert "if 80% of the losses are below the mean" in out and "thesis" not in out
        assert "prunes 13 of 16 epochs: 10,800 of 16,000 sample visits" in out

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ([], "give either --samples or --data"),
            (["--samples", "100"], "leaves 75 of 100 training images, fewer than a batch of 128"),
            (["--samples", "1000", "--batch-size", "0"], "--epochs and --batch-size are at least 1"),
            (["--samples", "1000", "--validation-seconds", "1"], "--validation-seconds needs --epoch-seconds"),
            (["--samples", "1000", "--epoch-seconds", "-1"], "--epoch-seconds is above 0"),
        ],
    )
    def test_refusals(self, options: list[str], text: str) -> None:
        result = fineprune("plan-training", "--epochs", 30, *options)
        assert result.code == 2 and text in result.err
