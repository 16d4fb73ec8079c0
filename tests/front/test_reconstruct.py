"""Reconstruction from the front: where it is on by itself, what it leaves in bundles and reports."""

import json
from pathlib import Path
from typing import Any

import pytest

import fineprune
from fineprune.common.errors import UsageError
from fineprune.compressor.bundle import Bundle
from fineprune.models.data import load_data
from fineprune.recipe import job_of
from fineprune.report import write_report
from support.command import fineprune as run
from support.command import succeed

PRUNED = ["--prune", 0.6, "--samples", 100]


def compressed(trained: list[object], output: Path, *options: object) -> dict[str, Any]:
    """The manifest of a bundle."""
    succeed("compress", *trained, *PRUNED, *options, "--output", output)
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return manifest


def test_without_training_it_is_on_and_says_what_it_did(trained: list[object], tmp_path: Path) -> None:
    result = succeed("compress", *trained, *PRUNED, "--epochs", 0, "--output", tmp_path / "b")
    assert "reconstructed 3 layers on 216 images in" in result.err
    assert "the weights of others stay: up (it carries no masks), head (it carries no masks)" in result.err
    assert "reconstructed" in result.out
    facts = Bundle.load(tmp_path / "b").facts
    done = facts["reconstruction"]
    assert done["layers"] == ["stem", "depthwise", "grouped"] and done["images"] == 216 and done["seconds"] > 0
    assert done["left"] == [{"name": name, "reason": "it carries no masks"} for name in ("up", "head")]
    assert list(facts["accuracy"])[:3] == ["dense", "masked", "reconstructed"]
    write_report(tmp_path / "b", tmp_path / "page.html")
    assert "reconstructed" in (tmp_path / "page.html").read_text()


def test_it_can_be_left_out_and_is_where_epochs_follow(trained: list[object], tmp_path: Path) -> None:
    without = compressed(trained, tmp_path / "a", "--epochs", 0, "--no-reconstruct")
    trained_on = compressed(trained, tmp_path / "b", "--epochs", 1, "--preset", "taylor")
    for facts in (without, trained_on):
        assert "reconstruction" not in facts and "reconstructed" not in facts["accuracy"]
        assert facts["settings"]["reconstruct"] is None


def test_it_may_come_before_epochs(trained: list[object], tmp_path: Path) -> None:
    facts = compressed(trained, tmp_path / "b", "--epochs", 1, "--reconstruct")
    assert {"reconstructed", "finetuned"} <= facts["accuracy"].keys()


def test_it_is_refused_where_masks_come_later(trained: list[object], tmp_path: Path) -> None:
    result = run("compress", *trained, *PRUNED, "--epochs", 1, "--reconstruct", "--prune-schedule", "cubic", "--output", tmp_path / "b")
    assert result.code == 2 and "reconstruction refits the weights under final masks" in result.err


def test_python_takes_settings(data: str, named: list[object], network: str) -> None:
    options: dict[str, Any] = {"model_args": {"width": 6}, "prune": 0.5, "epochs": 0, "samples": 50}
    bundle = fineprune.compress(network, load_data(data), reconstruct={"images": 20}, **options)
    assert bundle.facts["reconstruction"]["images"] == 20
    with pytest.raises(UsageError, match="unknown reconstruct setting 'image'; known are images, columns, memory_bytes"):
        fineprune.compress(network, data, reconstruct={"image": 20}, **options)
    with pytest.raises(UsageError, match="reconstruct is true, false or a table of settings, got 3"):
        fineprune.compress(network, data, reconstruct=3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "epochs", "images"),
    [(None, 0, 512), (None, 2, 512), (True, 2, 512), (False, 0, None), ({"images": 7}, 2, 7)],
)
def test_recipes_say_it_alike(asked: object, epochs: int, images: int | None) -> None:
    table = {"prune": 0.5} if asked is None else {"prune": 0.5, "reconstruct": asked}
    job = job_of({"compress": table, "finetune": {"epochs": epochs}})
    assert (job.reconstruct and job.reconstruct.images) == images


def test_a_recipe_with_another_value_is_refused(tmp_path: Path, trained: list[object]) -> None:
    (tmp_path / "r.toml").write_text(
        '[model]\nname="resnet20"\ncheckpoint="x"\n[data]\nspec="digits"\n[compress]\nprune=0.5\nreconstruct={images=0}\n'
    )
    result = run("run", tmp_path / "r.toml")
    assert result.code == 2 and "reconstruct images is a whole number of at least 1, got 0" in result.err
