"""Fronts: what nothing beats; points that are kept, gone on with and refused; a point that is compressed again."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from torch import nn

import fineprune as package
from fineprune.cli import command
from fineprune.common.errors import RunError, UsageError
from fineprune.common.progress import Silent
from fineprune.compressor.bundle import Bundle
from fineprune.export.benchmark import BenchmarkConfig
from fineprune.pareto import sweep
from fineprune.pareto.files import DENSE, Files
from fineprune.pareto.front import EPOCHS, PRUNE, ROUNDS
from fineprune.pareto.picture import front_figure
from fineprune.pareto.points import front_of, point_of
from support.command import fineprune, succeed

QUICK = ["--epochs", 1, "--batch-size", 64, "--samples", 40, "--preset", "taylor", "--rounds", 1]


def point(milliseconds: float | None, accuracy: float | None) -> dict[str, Any]:
    return {"milliseconds": milliseconds, "accuracy": accuracy}


def test_the_front_is_what_nothing_beats() -> None:
    points = [point(1.0, 0.9), point(1.1, 0.9), point(0.5, 0.8), point(0.5, 0.7), point(0.4, None), point(None, 1.0), point(0.3, 0.8)]
    assert front_of(points) == [0, 6]
    assert front_of([*points[:2], point(1.0, 0.9)]) == [0, 2], "of equal ones none beats the other"
    errors = [point(1.0, 0.1), point(0.5, 0.2), point(0.6, 0.3)]
    assert front_of(errors, higher_is_better=False) == [0, 1]


@pytest.fixture(scope="module")
def made(folder: Path, trained: list[object]) -> tuple[Path, dict[str, Any]]:
    """A front of one ratio and two units, through the command line."""
    where = folder / "pareto"
    units = ["--prune", 0.5, "--unit", "weight", "--unit", "quad"]
    result = succeed("front", *trained, *QUICK, *units, "--output", where, "--plot", folder / "pareto.svg")
    assert "accuracy by latency" in " ".join(result.out.split())
    assert f"next: fineprune compress --front {where}/front.json --point N" in " ".join(result.out.split())
    return where, json.loads((where / "front.json").read_text())


def test_points_hold_what_was_measured(made: tuple[Path, dict[str, Any]], folder: Path) -> None:
    where, facts = made
    points = facts["points"]
    assert [one["name"] for one in points] == [*DENSE, "50 % weights", "50 % weights int8", "50 % quads", "50 % quads int8"]
    assert [one["point"] for one in points] == list(range(8))
    for one in points:
        assert one["milliseconds"] > 0 and 0 <= one["accuracy"] <= 1
        assert one["bytes"] == (where / one["file"]).stat().st_size
        if not one["name"].startswith(("dense", "int8")):
            bundle = Bundle.load(where / "points" / one["network"] / "bundle")
            assert 0.3 < one["pruned"] == 1 - bundle.facts["conv_macs_kept"] < 0.6
            assert one["macs"] == bundle.facts["macs"]["macs"]
            before, after = (
                (None, None) if one["int8"] else (bundle.facts["accuracy"][key] for key in ("batchnorm_recalibrated", "finetuned"))
            )
            assert one["accuracy_before"] == before and (one["int8"] or one["accuracy"] == after)
            unit = "quad" if "quads" in one["name"] else "weight"
            assert one["settings"]["compress"] == {
                **{"preset": "taylor", "prune": 0.5, "samples": 40},
                "fwp": {"unit": unit},
            }
    cost = json.loads((where / "points" / "0.5-quad" / "int8.onnx.int8.json").read_text())
    assert points[-1]["accuracy"] == pytest.approx(cost["accuracy"]["int8"]), "the engine's integers are ONNX Runtime's"
    assert [one["front"] for one in points] == [number in front_of(points) for number in range(8)]
    assert (facts["measure"], facts["unit"], facts["split"], facts["samples"]) == ("accuracy", None, "test", 80)
    drawn = (folder / "pareto.svg").read_text()
    assert all(f">{name}<" in drawn for name in (*DENSE, "weights", "quads, int8", "nothing faster is as good", "7"))


def test_finished_points_are_kept_and_others_are_added(made: tuple[Path, dict[str, Any]], trained: list[object]) -> None:
    where, facts = made
    stamps = {path: path.stat().st_mtime_ns for path in where.rglob("*") if path.is_file() and path.name != "front.json"}
    more = ["--prune", 0.7, "--unit", "weight", "--no-int8", "--output", where, "--json"]
    found = succeed("front", *trained, *QUICK, *more).json()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert [one["name"] for one in found["points"]] == [*(one["name"] for one in facts["points"]), "70 % weights"]
    assert [one["accuracy"] for one in found["points"][:-1]] == [one["accuracy"] for one in facts["points"]]
    assert [one["point"] for one in found["points"]] == list(range(9))


def test_other_settings_are_refused(made: tuple[Path, dict[str, Any]], trained: list[object], named: list[object], tmp_path: Path) -> None:
    where, _ = made
    result = fineprune("front", *trained, *QUICK, "--epochs", 2, "--output", where)
    assert result.code == 2
    words = r"holds points of other settings (finetune.epochs, 1 there and 2 here); give the same ones, or another folder"
    assert words in " ".join(result.err.split())
    assert "other settings (network)" in fineprune("front", *named, *QUICK, "--output", where).err
    (tmp_path / "notes.txt").write_text("mine")
    assert "is no folder of `fineprune front`" in fineprune("front", *trained, *QUICK, "--output", tmp_path).err
    assert "--plot writes .png or .svg" in fineprune("front", *trained, "--output", tmp_path / "new", "--plot", "x.pdf").err
    assert "in [0, 1), got 1.5" in fineprune("front", *trained, "--prune", 1.5, "--output", tmp_path / "new").err
    assert not (tmp_path / "new").exists()


def test_an_interrupted_front_goes_on(trained: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, compressed = tmp_path / "front", []

    def counted(*given: Any, output: Path, **others: Any) -> Bundle:
        compressed.append(output.parent.name)
        return whole(*given, output=output, **others)

    def stopped(self: Files, network: Any, place: Path, *given: Any, **others: Any) -> Any:
        if place.name == "0.6":
            raise KeyboardInterrupt
        return exported(self, network, place, *given, **others)

    whole, exported = sweep.compress_network, Files.in_engine
    monkeypatch.setattr(sweep, "compress_network", counted)
    asked = ["front", *trained, *QUICK, "--no-int8", "--prune", 0.4, "--prune", 0.6, "--output", where]
    with monkeypatch.context() as patched:
        patched.setattr(Files, "in_engine", stopped)
        result = fineprune(*asked)
    assert result.code == 1 and "what was done is kept, run the same command again to go on" in result.err
    left = json.loads((where / "front.json").read_text())
    assert [one["name"] for one in left["points"]] == [*DENSE[:2], "40 %"]
    assert not any(one["front"] for one in left["points"]), "nothing is timed yet"
    assert compressed == ["0.4", "0.6"]
    result = succeed(*asked)
    assert compressed == ["0.4", "0.6"] and "points/0.4: kept" in result.err
    assert [one["name"] for one in json.loads((where / "front.json").read_text())["points"]] == [*DENSE[:2], "40 %", "60 %"]


def test_a_point_is_compressed_again(made: tuple[Path, dict[str, Any]], trained: list[object], tmp_path: Path) -> None:
    where, _ = made
    again = succeed("compress", *trained, "--front", where / "front.json", "--point", 6, "--output", tmp_path / "again", "--json").json()
    own = Bundle.load(where / "points" / "0.5-quad" / "bundle")
    assert again["settings"] == own.facts["settings"]
    assert again["accuracy"] == own.facts["accuracy"]
    more = ["--epochs", 2, "--prune", 0.3, "--seed", 1, "--output", tmp_path / "more", "--json"]
    changed = succeed("compress", *trained, "--front", where, "--point", 7, *more).json()["settings"]
    expected = {**own.facts["settings"]["finetune"], "epochs": 2, "warmup_epochs": 0.2, "seed": 1}
    assert changed["finetune"] == expected and changed["fwp"]["unit"] == "quad" and changed["calibration"]["samples"] == 40
    assert changed["fwp"]["ratio"] == 0.3


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (99, "point 99 of .* is not there; it has one of 4, 5, 6, 7"),
        (0, "point 0 of .* is the network as it is; choose one of 4, 5, 6, 7"),
        (None, "front and point belong together"),
        (True, "point True of .*"),
    ],
)
def test_a_number_that_is_not_there(made: tuple[Path, dict[str, Any]], number: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        point_of(made[0] / "front.json", number)


def test_a_file_that_is_no_front(made: tuple[Path, dict[str, Any]], trained: list[object], tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    result = fineprune("compress", *trained, "--front", path, "--point", 1, "--output", tmp_path / "b")
    assert result.code == 1 and f"{path}: points is missing; make it with `fineprune front`" in " ".join(result.err.split())
    with pytest.raises(RunError, match="cannot read"):
        point_of(tmp_path / "none.json", 1)
    facts = json.loads((made[0] / "front.json").read_text())
    chosen = next(one for one in facts["points"] if one["settings"])
    chosen["settings"]["compress"]["times"] = "/etc/passwd"
    chosen["settings"]["finetune"]["asynchronous"] = {"algorithm": "asgd", "address": "ray://elsewhere"}
    path.write_text(json.dumps(facts))
    named = point_of(path, chosen["point"])
    assert named is not None and named.finetune["asynchronous"] == {"algorithm": "asgd"} and named.target is None  # type: ignore[index]


def test_a_recipe_takes_a_point(
    made: tuple[Path, dict[str, Any]], data: str, network: str, checkpoint: Path, trust: list[object], tmp_path: Path
) -> None:
    recipe, front = tmp_path / "r.toml", made[0] / "front.json"
    tables = [
        f'[model]\nname = "{network}"\nargs = {{ width = 6 }}\ncheckpoint = "{checkpoint}"',
        f'[data]\nspec = "{data}"',
        f'[compress]\nfront = "{front}"\npoint = 7\nsamples = 30',
        "[export]\nparity_samples = 0",
    ]
    recipe.write_text("\n".join(tables))
    allowed = [*trust, "--trust", checkpoint]
    assert str(front) in fineprune("run", recipe, "--output", tmp_path / "run", *allowed).err, "nothing is read that is not trusted"
    succeed("run", recipe, "--output", tmp_path / "run", *allowed, "--trust", front)
    settings = Bundle.load(tmp_path / "run" / "bundle").facts["settings"]
    own = Bundle.load(made[0] / "points" / "0.5-quad" / "bundle").facts["settings"]
    assert settings == {**own, "calibration": {**own["calibration"], "samples": 30}}
    recipe.write_text("\n".join(tables).replace("point = 7", "point = 99"))
    result = fineprune("run", recipe, "--output", tmp_path / "other", *allowed, "--trust", front)
    assert result.code == 2 and f"{recipe}: [compress] point 99 of {front} is not there" in " ".join(result.err.split())


def test_the_command_tells_the_defaults_of_the_function() -> None:
    said = {param.name: param for param in command.commands["front"].params if isinstance(param, click.Option)}
    assert f"[default: {EPOCHS}]" in str(said["epochs"].help) and said["rounds"].default == ROUNDS
    *others, last = (f"{ratio:g}" for ratio in PRUNE)
    assert f"without one, {', '.join(others)} and {last}" in str(said["ratios"].help)


def regression() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        images = torch.randn(80, 1, 12, 12)
        return (
            nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(256, 1)),
            images,
            images.mean((2, 3)),
        )


def test_a_metric_of_ones_own(tmp_path: Path) -> None:
    model, images, targets = regression()
    error = package.Metric("error", lambda outputs, wanted: (outputs - wanted).abs().mean(1), higher_is_better=False, unit="mm")
    config = BenchmarkConfig(rounds=1, turn_s=0, warmup_s=0)
    given: dict[str, Any] = {"loss": nn.functional.mse_loss, "metric": error, "epochs": 1, "preset": "taylor", "batch_size": 16}
    given |= {"samples": 40, "progress": Silent(), "config": config}
    facts = package.front(model, (images, targets), tmp_path / "front", prune=[0.5], **given)
    assert (facts["measure"], facts["unit"], facts["higher_is_better"]) == ("error", "mm", False)
    points = facts["points"]
    assert [one["name"] for one in points] == [*DENSE, "50 %", "50 % int8"]
    best = min(points, key=lambda one: one["accuracy"])
    assert best["front"]
    assert points[5]["accuracy"] == pytest.approx(points[4]["accuracy"], rel=0.2) and points[5]["accuracy"] != points[4]["accuracy"]
    axes = front_figure(facts).axes[0]
    assert axes.get_ylabel() == "validation error, mm"
    bundle = package.compress(model, (images, targets), front=tmp_path / "front", point=4, **{k: given[k] for k in ("loss", "metric")})
    own = Bundle.load(tmp_path / "front" / "points" / "0.5" / "bundle")
    assert bundle.facts["settings"] == own.facts["settings"] and bundle.facts["accuracy"] == own.facts["accuracy"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_macs": 0.5}, "front takes no target_macs"),
        ({"statistics": "x"}, "front takes no statistics"),
        ({"colour": 1}, "front takes no colour"),
        ({"fwp": 0.5}, "front takes its ratios as prune"),
        ({"prune": []}, "a front needs ratios"),
        ({"prune": [0.5], "units": ["octet"]}, "FWP unit"),
        ({"config": BenchmarkConfig(threads=(1, 2))}, "one number of threads"),
    ],
)
def test_arguments_that_make_no_sense(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    model, images, _ = regression()
    with pytest.raises(UsageError, match=words):
        package.front(model, images, tmp_path / "front", **{"epochs": 0, "progress": Silent(), **settings})
    assert not (tmp_path / "front").exists()
