"""benchmarks/tables.py: what each cell of the source's tables is asked for."""

import argparse
from pathlib import Path

import pytest
import tables
from tables_source import TABLES

from fineprune.asked import Asked
from fineprune.common.files import write_json
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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--table", "5.2", "--cell", "resnet20:lamp@half"], "--cell resnet20:lamp@half: a method is NAME, NAME@0.5"),
        (["--table", "5.2", "--cell", "alexnet:lamp"], "table 5.2 has resnet20, resnet32, resnet56"),
        (["--table", "3.1", "--plot", "x.svg"], "compares trainings of the same networks"),
        (["--table", "5.2", "--plot", "x.svg", "--runs", "nowhere"], "draws what --latency timed"),
    ],
)
def test_what_cannot_be_made_is_refused(
    given: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tables.py", *given])
    with pytest.raises(SystemExit, match="2"):
        tables.main()
    assert words in capsys.readouterr().err


def test_a_picture_has_a_line_for_each_method(tmp_path: Path) -> None:
    names = ["resnet20:fpgm@0.3", "resnet20:fpgm@0.45", "resnet20:fpgm@0.3+15:obs", "resnet20:2:4@0.5"]
    found = [cell("5.2", name, runs=tmp_path, cell=names, epochs_share=0.02) for name in names]
    rows = [(found[0].dense.path.name, "resnet20 dense, engine"), *((one.path.name, one.name) for one in found)]
    points = [
        {"name": name, "run": run, "accuracy": 0.9 - 0.1 * k, "milliseconds": 1.0 / (k + 1), "int8": False}
        for k, (run, name) in enumerate(rows)
    ]
    write_json(tables.times_of(found[0].arguments), {"machine": {"cpu": "some CPU"}, "points": points})
    tables.draw(tmp_path / "tables.svg", found)
    drawn = (tmp_path / "tables.svg").read_text()
    for label in ("dense, engine", "fpgm", "fpgm + blocks by obs", "2:4", "resnet20, 2 epochs; some CPU"):
        assert drawn.count(f">{label}<") == 1, label


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
