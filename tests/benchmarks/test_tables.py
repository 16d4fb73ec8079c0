"""benchmarks/tables.py: what each cell of the source's tables is asked for."""

import argparse
from pathlib import Path

import pytest
import tables
from tables_source import TABLES

from fineprune.asked import Asked
from fineprune.models.zoo.registry import accepted_by


def cell(table: str, name: str, **given: object) -> tables.Cell:
    empty = {"table": table, "data": "digits", "epochs_share": 1.0, "checkpoint": [], "network_arg": [], "prune": None, "training": {}}
    arguments = argparse.Namespace(**{**empty, "samples": None, "quick": False, "runs": Path("runs"), **given})
    return tables.Cell(name=name, seed=0, source=TABLES[table], arguments=arguments)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("share", [1.0, 0.01])
def test_every_cell_can_be_asked_for(table: str, share: float) -> None:
    """Settings of trainings and masks are checked where they are made; each cell has a file of its own."""
    found = [cell(table, name, epochs_share=share) for name in TABLES[table].cells]
    assert len({one.path for one in found}) == len(found) > 0
    for one in found:
        assert one.training.epochs >= 1
        assert set(one.spec.args) <= set(accepted_by(one.spec.name)), "a network that there is, and its arguments"
        if one.masks is not None:
            Asked.of(*split(one)).job(compare_dense=False, device="cpu")


def split(one: tables.Cell) -> tuple[dict[str, object], dict[str, object]]:
    """Tables [compress] and [finetune] of a recipe."""
    masks = {key: {"ratio": value} if key in ("ffp", "fwp") else value for key, value in (one.masks or {}).items()}
    return masks, {"epochs": one.training.epochs}


def test_masks_are_those_of_the_source() -> None:
    assert cell("5.2", "resnet20:baseline").masks is None
    assert cell("5.2", "resnet20:asl").masks == {"method": "asl", "rate": 0.725}
    assert cell("5.4", "resnet20:fpgm+15").masks == {"method": "fpgm", "rate": 0.4, "preset": "thesis", "ffp": 0.15}
    assert cell("5.8", "resnet20:asl+30").masks == {"method": "asl", "rate": 0.7249, "preset": "thesis", "ffp": 0.3}
    strong = cell("5.2", "resnet20:strong").masks
    assert strong is not None and (strong["preset"], strong["ffp"]) == ("thesis", 0.37)
    assert (1 - strong["ffp"]) * (1 - strong["fwp"]) == pytest.approx(1 - 0.728)
    assert cell("5.2", "resnet20:ours", prune=0.5).masks == {"prune": 0.5}


def test_a_cell_names_its_rate() -> None:
    assert cell("5.2", "resnet20:ours-quad@0.6", prune=0.5).masks == {"prune": 0.6, "fwp": {"unit": "quad"}}
    assert cell("5.2", "resnet20:lamp@0.5").masks == {"method": "lamp", "rate": 0.5}
    assert cell("5.4", "resnet20:fpgm@0.3+15").masks == {"method": "fpgm", "rate": 0.3, "preset": "thesis", "ffp": 0.15}
    by_error = cell("5.4", "resnet20:fpgm+15:obs").masks
    assert by_error is not None and by_error["ffp"] == {"ratio": 0.15, "criterion": "obs", "scope": "global"}
    assert cell("5.2", "resnet20:ffp-l1@0.3").masks == {"preset": "thesis", "ffp": {"ratio": 0.3, "criterion": "l1"}, "fwp": 0.0}


def test_a_share_of_the_epochs_keeps_the_schedule() -> None:
    assert cell("5.2", "resnet20:baseline", epochs_share=0.1).training.milestones == (8, 12)
    assert cell("5.2", "resnet20:fpgm", epochs_share=0.1).training.epochs == 9
    single = cell("5.2", "resnet20:fpgm", epochs_share=0.001).training
    assert (single.epochs, single.schedule) == (1, "constant")
    other = cell("5.2", "resnet20:fpgm", epochs_share=0.1, training={"schedule": "cosine"}).training
    assert (other.schedule, other.milestones) == ("cosine", ())


def test_tables_of_trainings() -> None:
    delayed = cell("4.1", "cifar-resnet18:lc-asgd-16").training.asynchronous
    assert delayed is not None and (delayed.algorithm, delayed.workers) == ("lc-asgd", 16)
    assert cell("4.1", "cifar-resnet18:sgd-1").training.lr == 0.3
    automatic = cell("3.1", "lenet:pruned+auto").training
    assert (automatic.policy.name, automatic.schedule) == ("fine-pruning", "auto")
    assert cell("3.1", "lenet:regular").training.policy.name == "none"
