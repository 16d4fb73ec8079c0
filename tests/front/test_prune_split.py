"""One ratio that a common list divides between blocks and weights: option, recipe key, argument, manifest, table; masks that come late."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fineprune as package
from fineprune.common.errors import UsageError
from fineprune.compressor.bundle import Bundle
from fineprune.recipe import job_of, read_recipe
from fineprune.schedules import CubicSchedule, at
from support.command import fineprune, succeed

COMMON = ["--prune", 0.5, "--prune-split", "common", "--samples", 80]
OBS = ["--ffp-criterion", "obs", "--fwp-criterion", "obs"]


def pruned(facts: dict[str, Any]) -> float:
    """Of the multiply-adds of convolutions that can be masked."""
    kept = 1.0
    for ratio in facts["ratios"]["achieved"].values():
        kept *= 1 - ratio
    return 1 - kept


@pytest.mark.parametrize("criteria", [[], OBS], ids=["taylor", "obs"])
def test_a_bundle_says_what_was_asked_and_what_each_kind_got(trained: list[object], criteria: list[object], tmp_path: Path) -> None:
    result = succeed("compress", *trained, *COMMON, *criteria, "--epochs", 0, "--output", tmp_path / "b")
    facts = Bundle.load(tmp_path / "b").facts
    assert facts["settings"]["common"] == 0.5 and facts["ratios"]["asked"] == {"ffp": 0.0, "fwp": 0.0, "common": 0.5}
    assert pruned(facts) == pytest.approx(0.5, abs=0.01)
    assert all(share > 0 for share in facts["ratios"]["achieved"].values())
    shares = {
        row: line.count("%") for line in result.out.splitlines() for row in ("(FFP)", "(FWP)", "convolution multiply-adds") if row in line
    }
    assert shares == {"(FFP)": 1, "(FWP)": 1, "convolution multiply-adds": 2}, "asked is the sum alone"
    succeed("report", tmp_path / "b", "--output", tmp_path / "page.html")


def test_statistics_are_those_of_the_dense_network(trained: list[object], tmp_path: Path) -> None:
    succeed("calibrate", *trained, *COMMON, "--output", tmp_path / "s")
    result = succeed("compress", *trained, *COMMON, "--statistics", tmp_path / "s", "--epochs", 0, "--output", tmp_path / "b")
    assert "calibrating" not in result.err
    succeed("compress", *trained, *COMMON, "--prune-schedule", "one-shot", "--epochs", 0, "--output", tmp_path / "again")
    one, other = (Bundle.load(tmp_path / name).masks for name in ("b", "again"))
    assert all((mask == other[kind][name]).all() for kind, of in one.items() for name, mask in of.items())


def test_what_was_pruned_before_counts(trained: list[object], bundle: Path, trust: list[object], tmp_path: Path) -> None:
    before = pruned(Bundle.load(bundle).facts)
    options = ["--prune", before + 0.1, "--prune-split", "common", "--samples", 80, "--epochs", 0]
    succeed("compress", bundle, *options, *trust, "--output", tmp_path / "b")
    assert pruned(Bundle.load(tmp_path / "b").facts) == pytest.approx(before + 0.1, abs=0.01)


def test_masks_may_come_by_a_schedule(trained: list[object], tmp_path: Path) -> None:
    cubic = ["--prune-schedule", "cubic", "--prune-schedule-arg", "updates=2", "--prune-schedule-arg", "samples=40", "--epochs", 2]
    succeed("compress", *trained, *COMMON, *cubic, "--output", tmp_path / "b")
    facts = Bundle.load(tmp_path / "b").facts
    assert pruned(facts) == pytest.approx(0.5, abs=0.01)
    assert all(share > 0 for share in facts["ratios"]["achieved"].values())


def test_a_recipe_and_python_say_it_alike(tmp_path: Path, named: list[object], data: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        '[model]\nname = "lenet"\n[data]\nspec = "digits"\n[train]\nepochs = 1\n[compress]\nprune = 0.6\nprune_split = "common"\n'
        'ffp = { criterion = "obs" }\nfwp = { criterion = "obs" }\n'
    )
    config = job_of(read_recipe(path)).config
    assert config.common == 0.6 and [part.criterion for part in config.parts] == ["obs", "obs"] and len(config.passes) == 1
    assert at(config, partial(CubicSchedule(updates=2).ratio, 1)).common == pytest.approx(0.6 * 7 / 8)
    with pytest.raises(UsageError, match="measure different things"):
        package.compress("lenet", "digits", prune=0.6, prune_split="common", fwp={"criterion": "fisher"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prune", 0.4, "--prune-split", "half"], "unknown prune_split 'half'; choose one of preset, common"),
        (["--ffp", 0.4, "--fwp", 0.2, "--prune-split", "common"], "prune_split 'common' divides one ratio: give prune"),
        (["--prune", 0.4, "--prune-split", "common", "--fwp-criterion", "fisher"], "give FFP 'obs' with FWP 'obc', 'obs'"),
    ],
)
def test_what_cannot_be_is_one_line(trained: list[object], tmp_path: Path, options: list[object], said: str) -> None:
    result = fineprune("compress", *trained, *options, "--epochs", 0, "--output", tmp_path / "b")
    assert result.code == 2 and said in result.err and len(result.err.strip().splitlines()) == 1
