"""Learning from the dense network while fine-tuning: option, recipe key, argument, manifest, table and page."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fineprune as package
from fineprune.common.errors import UsageError
from fineprune.compressor.bundle import Bundle
from fineprune.models.data import load_data
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.distillation import DistillConfig
from fineprune.recipe import finetune_of, job_of, read_recipe
from support.command import fineprune, succeed

LINE = "(learned from the dense network: 0.8 of the loss, temperature 3, features 0.5)"


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))


@pytest.fixture(scope="module")
def taught(folder: Path, trained: list[object]) -> dict[str, Any]:
    """A compression by `--distill`; what it printed is under `out`."""
    options = [
        "--distill",
        0.8,
        "--temperature",
        3,
        "--distill-features",
        0.5,
        "--distill-layer",
        "stem",
        "--epochs",
        2,
        "--compare-dense",
        "--samples",
        60,
    ]
    result = succeed("compress", *trained, "--prune", 0.4, *options, "--output", folder / "taught")
    return {"out": result.out, "bundle": folder / "taught", **Bundle.load(folder / "taught").facts}


def test_manifest_table_and_page_say_so(taught: dict[str, Any], tmp_path: Path) -> None:
    settings = {"share": 0.8, "temperature": 3.0, "features": 0.5, "layers": ["stem"]}
    assert taught["settings"]["finetune"]["distill"] == settings
    assert [taught["training"][name]["distill"] for name in ("finetune", "dense_finetune")] == [settings] * 2
    assert LINE in taught["out"]
    succeed("report", taught["bundle"], "--output", tmp_path / "page.html")
    assert LINE in (tmp_path / "page.html").read_text()


def test_an_edited_share_is_named(taught: dict[str, Any], tmp_path: Path) -> None:
    bundle = Bundle.load(taught["bundle"])
    bundle.facts["training"]["finetune"]["distill"]["share"] = "most"
    bundle.save(tmp_path / "b")
    result = fineprune("report", tmp_path / "b", "--output", tmp_path / "page.html")
    assert result.code == 1 and "training.finetune.distill.share is 'most'" in result.err


def test_the_dense_network_teaches(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fineprune import compression

    teachers = []
    opened = compression.opened
    monkeypatch.setattr(compression, "opened", lambda *given, **rest: (teachers.append(rest["beside"].teacher), opened(*given, **rest))[1])
    model = network()
    bundle = package.compress(model, load_data(data), prune=0.4, epochs=1, distill=0.5, samples=40)
    plain = package.compress(model, load_data(data), prune=0.4, epochs=1, distill=0, samples=40)
    assert teachers[1] is None
    assert all(value.equal(model.state_dict()[name]) for name, value in teachers[0].state_dict().items())
    assert bundle.facts["settings"]["finetune"]["distill"] == {"share": 0.5, "temperature": 4.0}
    assert "distill" not in json.dumps(plain.facts)
    assert not all(value.equal(plain.weights[name]) for name, value in bundle.weights.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--distill", 1.2], "distill: share is in (0,1], got 1.2"),
        (["--distill", 0.9, "--temperature", 0], "distill: temperature is above 0, got 0.0"),
        (["--temperature", 2], "--temperature belongs to --distill; give it, too"),
        (["--distill-layer", "stem"], "--distill-layer belongs to --distill; give it, too"),
    ],
)
def test_bad_options_are_one_line(trained: list[object], tmp_path: Path, options: list[object], said: str) -> None:
    result = fineprune("compress", *trained, "--prune", 0.4, *options, "--output", tmp_path / "b")
    assert result.code == 2 and said in result.err and len(result.err.strip().splitlines()) == 1


def recipe(folder: Path, finetune: str, train: str = "epochs = 1") -> Path:
    tables = f'[model]\nname = "lenet"\n[data]\nspec = "digits"\n[train]\n{train}\n[compress]\nprune = 0.4\n[finetune]\n{finetune}\n'
    (folder / "recipe.toml").write_text(tables)
    return folder / "recipe.toml"


def test_a_recipe_says_it_in_one_field(tmp_path: Path) -> None:
    for line, expected in (("distill = 0.9", {}), ("distill = { share = 1, temperature = 2 }", {"share": 1, "temperature": 2})):
        settings = read_recipe(recipe(tmp_path, line))
        config = finetune_of(settings)
        assert config is not None and config.distill == DistillConfig(**expected)
        assert job_of(settings).finetune == config
    with pytest.raises(UsageError, match=r"\[finetune\] distill: share is in \(0,1\], got 2"):
        read_recipe(recipe(tmp_path, "distill = 2"))
    with pytest.raises(UsageError, match=r"\[train\] distill belongs to \[finetune\]"):
        read_recipe(recipe(tmp_path, "epochs = 1", "distill = 0.9"))


def test_the_help_says_the_real_temperature() -> None:
    text = " ".join(succeed("compress", "--help").out.split())
    assert f"divided ({DistillConfig().temperature:g} where it is not given)" in text


def test_it_is_given_in_one_place(data: str) -> None:
    with pytest.raises(UsageError, match="distill is one of the settings that finetune gives"):
        package.compress(network(), load_data(data), prune=0.4, distill=0.9, finetune=TrainConfig(epochs=1))
