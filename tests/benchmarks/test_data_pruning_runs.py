"""The benchmark of data pruning on a few digits: its rows, its files, and stopped runs that come out of whole ones."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import data_pruning
import pytest
import torch
from data_pruning_plot import draw, panel_title
from data_pruning_rows import QUICK_ROWS, ROWS, config_of, stops_of
from data_pruning_table import GOALS, table
from label_noise import found, with_wrong_labels
from shared_folder import claimed

from fineprune.models.data import load_data

SETTINGS: dict[str, Any] = {"epochs": 20, "batch_size": 128, "noise": 0.0, "training": {}}
_TIMES = ("seconds", "cpu_seconds", "validation_seconds", "policy_seconds", "rate_seconds", "rate_cpu_seconds")


def made(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: object) -> dict[str, dict[str, Any]]:
    """The runs of `data_pruning.py` with these options, by row."""
    given = ["--data", "digits", "--networks", "lenet", "--samples", 120, "--epochs", 5, "--batch-size", 32, "--seeds", 0, "--threads", 1]
    monkeypatch.setattr(sys, "argv", ["data_pruning.py", *map(str, [*given, "--runs", folder, *options])])
    data_pruning.main()
    return {run["row"]: run for run in (json.loads(path.read_text()) for path in folder.glob("*.json"))}


def untimed(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in _TIMES} for record in run["history"]]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_run(row: str) -> None:
    config = config_of("lenet", row, 0, **SETTINGS)
    changes = ROWS[row]
    assert config.epochs == round(20 * changes.get("squeezed", 1.0) * changes.get("stopped", 1.0))
    assert config.policy.order == ("random" if "-random" in row else "easiest" if "-easiest" in row else "worst")
    assert (config.schedule == "auto") == row.endswith("auto-lr")
    assert config.milestones in ((), (10, 15), tuple(round(20 * changes.get("squeezed", 1)) * k // 4 for k in (2, 3)))


def test_rows_by_hand() -> None:
    late = config_of("lenet", "late-stop", 0, **SETTINGS)
    assert (late.epochs, late.milestones, late.policy.window, late.policy.start, late.lr) == (16, (10, 15), 20, 10, 0.05)
    assert stops_of("late", list(ROWS)) == {0.8: "late-stop"} and stops_of("late-stop", list(ROWS)) == {}
    assert stops_of("regular", ["regular", "stop-85", "equal-85"]) == {0.85: "stop-85"}
    changed = config_of("resnet20", "regular", 0, **{**SETTINGS, "training": {"lr": 0.02, "warmup_epochs": 0.0}})
    assert (changed.lr, changed.warmup_epochs, changed.weight_decay) == (0.02, 0.0, 5e-4)
    rule = {**SETTINGS, "training": {"auto_lr": {"interval": 2}}}  # of a table that has rows without it, too
    assert config_of("lenet", "auto-lr", 0, **rule).auto_lr.interval == 2 and config_of("lenet", "late", 0, **rule).schedule == "multistep"
    assert set(QUICK_ROWS) <= set(ROWS)


def test_a_stopped_row_comes_out_of_the_whole_one_as_if_trained_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    together = made(monkeypatch, tmp_path / "a", "--rows", "regular", "stop-60")
    apart = made(monkeypatch, tmp_path / "b", "--rows", "stop-60")
    assert set(together) == {"regular", "stop-60"} and set(apart) == {"stop-60"}
    one, other = together["stop-60"], apart["stop-60"]
    assert untimed(one) == untimed(other) == untimed(together["regular"])[:3]
    facts = ("config", "test_accuracy", "best_validation_accuracy", "visits", "samples", "model", "settings", "saving_of_run")
    assert [one[fact] for fact in facts] == [other[fact] for fact in facts]
    capsys.readouterr()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.json")}
    made(monkeypatch, tmp_path / "a", "--rows", "regular", "stop-60")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.json")}
    assert "regular" in capsys.readouterr().out


def test_a_stopped_row_waits_for_the_whole_one_that_another_process_is_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(monkeypatch, tmp_path / "a", "--rows", "regular", "stop-60")
    name = next(path.stem for path in (tmp_path / "a").glob("*.json") if json.loads(path.read_text())["row"] == "regular")
    with claimed(tmp_path / "b" / "state" / f"{name}.lock") as mine:
        assert mine and made(monkeypatch, tmp_path / "b", "--rows", "regular", "stop-60") == {}
    assert set(made(monkeypatch, tmp_path / "b", "--rows", "stop-60")) == {"stop-60"} < set(whole)


def test_wrong_labels_are_planted_and_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = made(monkeypatch, tmp_path, "--rows", "regular", "fine-pruning", "--noise", 0.1)
    assert set(runs["regular"]["bad_data"]) == {"high-loss", "high-count"}
    assert set(runs["fine-pruning"]["bad_data"]) == {"high-loss", "high-count", "most-pruned", "pruned-alone"}
    for precision, recall in runs["fine-pruning"]["bad_data"].values():
        assert precision == recall and precision * 12 == pytest.approx(round(precision * 12))
    assert runs["fine-pruning"]["settings"]["noise"] == 0.1


def test_ties_do_not_know_which_labels_are_wrong() -> None:
    """Wrong labels and the order of ties are drawn by the same seed, and must not be the same draw."""
    data, bad = with_wrong_labels(load_data("digits"), 0.1, torch.Generator().manual_seed(0))
    assert int(bad.sum()) == round(0.1 * len(data.train))
    losses = torch.ones(2, len(bad))
    losses[1, 5] = torch.nan
    assert found(losses, bad, 0)["pruned-alone"][0] < 0.2


def test_wrong_labels_are_those_of_other_classes() -> None:
    data = load_data("digits")
    noisy, bad = with_wrong_labels(data, 0.25, torch.Generator().manual_seed(3))
    assert torch.equal(noisy.train.labels != data.train.labels, bad)
    assert torch.equal(noisy.validation.labels, data.validation.labels) and noisy.train.labels.max() < 10


def run_of(row: str, seed: int, accuracy: float, visits: float, saved: float | None) -> dict[str, Any]:
    saving = None if saved is None else {"predicted": saved, "measured_cpu": saved}
    return {
        **{"row": row, "seed": seed, "test_accuracy": accuracy, "best_validation_accuracy": accuracy, "visits_share": visits},
        **{"cpu_s": 10 * visits, "wall_s": 20 * visits, "policy_s": 0.1, "epochs_run": 20, "saving_of_run": saving},
        **{"config": {"epochs": 20}, "settings": {"epochs": 20}, "bad_data": None},
    }


def test_a_policy_is_compared_with_the_best_of_equal_time() -> None:
    runs = [run_of("regular", s, 0.9 + s / 100, 1.0, None) for s in (0, 1)]
    runs += [run_of("strong", s, 0.897 + s / 100, 0.74, 0.26) for s in (0, 1)]
    runs += [run_of("stop-75", 0, 0.89, 0.75, None), run_of("equal-75", 0, 0.88, 0.75, None), run_of("stop-60", 0, 0.9, 0.6, None)]
    rows = {row["row"]: row for row in table(runs)}
    assert rows["strong"]["difference"] == pytest.approx(-0.3) and rows["strong"]["met"] == ["goal"]
    assert rows["strong"]["rival"] == "stop-75" and rows["strong"]["over_rival"] == pytest.approx(0.7)
    assert rows["regular"]["rival"] is None and rows["stop-75"]["rival"] is None


def test_the_picture_names_families_and_orders(tmp_path: Path) -> None:
    rows = [row for row in ROWS if row not in ("regular", "equal-60")]
    runs = [run_of("regular", 0, 0.9, 1.0, None), *(run_of(row, 0, 0.89, 0.7, 0.3) for row in rows)]
    draw(tmp_path / "a.svg", {"lenet": table(runs)}, GOALS)
    texts = re.findall(r">([^<>]+)</text>", (tmp_path / "a.svg").read_text())
    orders = [name for name in rows if not name.startswith(("equal-", "stop-"))]
    assert {*orders, "equal time, squeezed", "equal time, stopped", "goal", "hoped for", "lenet, 1 seed"} <= set(texts)
    assert texts.count("equal time, squeezed") == 1 and "regular" not in texts


def test_tables_of_one_network_have_panels_of_their_own(tmp_path: Path) -> None:
    rows = table([run_of("regular", 0, 0.9, 1.0, None), run_of("late", 0, 0.89, 0.7, 0.3)])
    settings: list[dict[str, Any]] = [
        {"data": "fashion-mnist:A"},
        {"data": "imagefolder:A"},
        {"data": "imagefolder:A", "noise": 0.1},
        {"data": "imagefolder:A", "bundle": "B"},
    ]
    titles = [panel_title("lenet:width=8", each) for each in settings]
    assert titles[2] == "lenet\nimages of a folder, 10% wrong labels" and titles[3] == "masked lenet\nimages of a folder"
    draw(tmp_path / "a.svg", dict.fromkeys(titles, rows), GOALS)
    texts = re.findall(r">([^<>]+)</text>", (tmp_path / "a.svg").read_text())
    assert len(set(titles)) == 4 == texts.count("time saved, %") and texts.count("late") == 1


def test_the_table_is_of_the_seeds_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(monkeypatch, tmp_path, "--rows", "regular", "--seeds", 0)
    made(monkeypatch, tmp_path, "--rows", "regular", "--seeds", 10, "--json", tmp_path / "a")
    assert [run["seed"] for run in json.loads((tmp_path / "a").read_text())["runs"]] == [10]


def test_an_absent_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        made(monkeypatch, tmp_path, "--device", "cuda:99")
    assert "--device: no device 'cuda:99' on this machine" in capsys.readouterr().err
    assert made(monkeypatch, tmp_path, "--device", "cuda:99", "--collect") == {}
