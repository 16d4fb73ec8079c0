"""Epochs on int8 grids while fine-tuning: option, recipe key, argument, manifest, table and page; resumed exactly; then exported."""

import json
from pathlib import Path

import pytest

import fineprune as package
from fineprune.common.errors import UsageError
from fineprune.compressor.bundle import Bundle
from fineprune.models.data import load_data
from fineprune.models.training.config import TrainConfig
from fineprune.recipe import finetune_of, job_of, read_recipe
from support.command import fineprune, succeed
from support.fakes import small_network


def test_manifest_table_page_and_file(trained: list[object], trust: list[object], tmp_path: Path) -> None:
    """With masks that are final just before."""
    schedule = ["--prune-schedule", "cubic", "--prune-schedule-arg", "updates=2", "--prune-schedule-arg", "samples=40"]
    options = ["--prune", 0.4, *schedule, "--epochs", 2, "--qat-epochs", 1, "--distill", 0.8]
    result = succeed("compress", *trained, *options, "--output", tmp_path / "b")
    facts = Bundle.load(tmp_path / "b").facts
    assert facts["settings"]["finetune"]["qat_epochs"] == facts["training"]["finetune"]["qat_epochs"] == 1
    assert facts["training"]["finetune"]["best_epoch"] == 2
    assert "(the last epoch on int8 grids)" in " ".join(result.out.split())
    succeed("report", tmp_path / "b", "--output", tmp_path / "page.html")
    assert "(the last epoch on int8 grids)" in (tmp_path / "page.html").read_text()
    succeed("export", tmp_path / "b", *trust, "--int8", "--int8-images", 50, "--parity-samples", 2, "--output", tmp_path / "m.onnx")


def test_the_argument_is_the_field(data: str) -> None:
    loaded, settings = load_data(data), {"prune": 0.4, "samples": 40, "epochs": 1}
    with pytest.raises(UsageError, match="qat_epochs is one of the settings that finetune gives"):
        package.compress(small_network(), loaded, prune=0.4, qat_epochs=1, finetune=TrainConfig(epochs=1))
    from_argument = package.compress("lenet", "digits", qat_epochs=1, **settings)
    plain = package.compress("lenet", "digits", **settings)
    assert from_argument.facts["settings"]["finetune"]["qat_epochs"] == 1 and "qat_epochs" not in json.dumps(plain.facts)
    assert not all(value.equal(plain.weights[name]) for name, value in from_argument.weights.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", 1, "--qat-epochs", 2], "qat_epochs are the last ones of epochs=1, got 2"),
        (["--epochs", 0, "--qat-epochs", 1], "qat_epochs are the last ones of epochs=0, got 1"),
        (["--epochs", 2, "--qat-epochs", 1, "--trainer", "asgd"], "leave qat_epochs out, or take the plain trainer"),
    ],
)
def test_bad_options_are_one_line(trained: list[object], tmp_path: Path, options: list[object], said: str) -> None:
    result = fineprune("compress", *trained, "--prune", 0.4, *options, "--output", tmp_path / "b")
    assert result.code == 2 and said in result.err and len(result.err.strip().splitlines()) == 1


def test_a_recipe_says_it_in_one_field(tmp_path: Path) -> None:
    def recipe(finetune: str) -> Path:
        tables = '[model]\nname = "lenet"\n[data]\nspec = "digits"\n[train]\nepochs = 1\n[compress]\nprune = 0.4\n'
        (tmp_path / "recipe.toml").write_text(f"{tables}[finetune]\nepochs = 3\n{finetune}\n")
        return tmp_path / "recipe.toml"

    settings = read_recipe(recipe("qat_epochs = 2"))
    config = finetune_of(settings)
    assert config is not None and config.qat_epochs == 2 and job_of(settings).finetune.qat_epochs == 2
    with pytest.raises(UsageError, match=r"\[finetune\] qat_epochs are the last ones of epochs=3, got 4"):
        read_recipe(recipe("qat_epochs = 4"))
