"""A method and its rate: one flag, one key, one argument, with the settings of its source, and blocks on top."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fineprune as package
from fineprune.asked import Asked
from fineprune.common.errors import UsageError
from fineprune.common.progress import Silent
from fineprune.compressor.bundle import Bundle
from fineprune.recipe import job_of
from support.command import succeed


def job(compress: dict[str, Any], **finetune: Any) -> Any:
    return Asked.of(compress, finetune).job()


def test_a_method_is_what_its_source_has() -> None:
    fpgm = job({"method": "fpgm", "rate": 0.4, "ffp": 0.15}, epochs=2)
    assert (fpgm.config.fwp.criterion, fpgm.config.fwp.ratio, fpgm.config.fwp.scope) == ("fpgm", 0.4, "layer")
    assert (fpgm.config.ffp.ratio, fpgm.preset, fpgm.reconstruct, fpgm.finetune.distill, fpgm.picked) == (0.15, "taylor", None, None, ())
    assert [part.mask for part in fpgm.config.parts] == ["fwp", "ffp"], "blocks on what the method leaves"
    thesis = job({"method": "magnitude", "rate": 0.5, "ffp": 0.3, "preset": "thesis"}, epochs=2).config
    assert (thesis.fwp.scope, thesis.fwp.floor, thesis.ffp.criterion) == ("global", 0.0, "l2")
    assert job({"method": "2:4"}, epochs=0).config.fwp.ratio == 0.5, "which is its only one"
    changed = job({"method": "lamp", "rate": 0.5, "fwp": {"unit": "quad"}, "prune_schedule": "cubic"}, epochs=2)
    assert changed.config.fwp.unit == "quad" and changed.schedule.name == "cubic"
    assert job_of({"compress": {"method": "lamp", "rate": 0.5}, "finetune": {"epochs": 0}}).config.fwp.ratio == 0.5


def test_a_method_lies_beneath_what_is_asked_for_anew() -> None:
    asked = Asked.of({"method": "fpgm", "rate": 0.4, "ffp": 0.15}, {"epochs": 1})
    assert Asked.of(*asked.to_json().values()) == asked
    assert Asked().over(asked) == asked
    assert Asked.of({"prune": 0.5}, {}).over(asked).method is None
    other = Asked.of({"method": "l1-filters", "rate": 0.3}, {}).over(asked)
    assert (other.method, other.rate, other.ffp) == ("l1-filters", 0.3, {})
    assert Asked.of({"fwp": 0.3}, {}).over(asked).config.fwp.criterion == "obc"


@pytest.mark.parametrize(
    ("compress", "message"),
    [
        ({"rate": 0.4}, "rate is of a method, got 0.4 and none"),
        ({"method": "l2"}, "method 'l2' ranks blocks, which ffp's criterion names; choose one of 2:4, "),
        ({"method": "soft"}, "method 'soft' is unknown; choose one of 2:4, "),
        ({"method": "fpgm"}, "method 'fpgm' needs a rate, the fraction that goes, such as 0.4"),
        ({"method": "fpgm", "rate": 0.4, "prune": 0.3}, "method 'fpgm' says what weights go; leave prune"),
        ({"method": "fpgm", "rate": 0.4, "fwp": {"criterion": "wis"}}, "method 'fpgm' says what weights go; leave prune"),
        ({"method": "fpgm", "rate": 0.4, "target_macs": 0.5}, "leave prune, prune_split, method and ratios out"),
        ({"method": "2:4", "rate": 0.4}, "the FWP criterion '2:4' drops 0.5 of the weights, not 0.4; give 0.5"),
    ],
)
def test_what_contradicts_a_method_is_refused(compress: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        job(compress, epochs=0)
    assert message in str(error.value)


def test_the_command_and_python_make_the_same_masks(trained: list[object], tmp_path: Path) -> None:
    succeed(
        "compress", *trained, "--samples", 16, "--method", "fpgm", "--rate", 0.4, "--ffp", 0.15, "--epochs", 0, "--output", tmp_path / "b"
    )
    bundle = Bundle.load(tmp_path / "b")
    given: dict[str, Any] = {"model_args": {"width": 6}, "checkpoint": trained[-1], "progress": Silent()}
    model = package.compress(str(trained[1]), str(trained[5]), samples=16, method="fpgm", rate=0.4, ffp=0.15, epochs=0, **given)
    for kind in ("ffp", "fwp"):
        assert bundle.masks[kind].keys() == model.masks[kind].keys() != set()
        assert all(torch.equal(mask, model.masks[kind][name]) for name, mask in bundle.masks[kind].items())
    assert bundle.facts["ratios"]["asked"] == {"ffp": 0.15, "fwp": 0.4}


def test_fpgm_trains_and_ends_with_the_masks_of_its_last_epoch(trained: list[object], tmp_path: Path) -> None:
    options = ["--method", "fpgm", "--rate", 0.4, "--ffp", 0.15, "--preset", "thesis", "--epochs", 2, "--samples", 16]
    succeed("compress", *trained, *options, "--output", tmp_path / "b")
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.facts["training"]["finetune"]["prune_schedule"] == {
        **{"name": "each-epoch", "updates": 2, "samples": 1024, "dropped": "zeroed"},
    }
    assert bundle.masks["ffp"] and bundle.masks["fwp"]
    assert int((~bundle.masks["fwp"]["stem"].flatten(1).any(1)).sum()) == int(0.4 * 6)


def test_what_goes_first_is_told_first(trained: list[object], tmp_path: Path) -> None:
    """Weights of all, blocks of what these leave: not the blocks of channels that no weight reads any more."""
    methods = ["--method", "fpgm", "--rate", 0.4, "--ffp", 0.15, "--samples", 16, "--epochs", 0]
    done = succeed("compress", *trained, *methods, "--output", tmp_path / "b")
    achieved = Bundle.load(tmp_path / "b").facts["ratios"]["achieved"]
    assert list(achieved) == ["fwp", "ffp"] and achieved["fwp"] > 0.4, "channels go with the filters"
    assert achieved["ffp"] == pytest.approx(0.15, abs=0.03)
    assert done.out.index("weights (FWP)") < done.out.index("blocks (FFP), of what is left")
