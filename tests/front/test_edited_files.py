"""Files that a hand has changed are named with what is wrong in them; they never end in an error of the code that reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fineprune.common.errors import RunError
from fineprune.common.form import Maybe, require
from fineprune.pipeline import _digest, _read_record
from support.command import Result, fineprune, succeed


@pytest.mark.parametrize(
    ("value", "form", "fault"),
    [
        (3, str, "it is 3 and not text"),
        (True, int, "it is True and not a whole number"),
        (1.0, int, "it is 1.0 and not a whole number"),
        ("1", float, "it is '1' and not a number"),
        ({"a": {}}, {"a": {"b": int}}, "a.b is missing"),
        ({"a": None}, {"a": int}, "a is None and not a whole number"),
        ({"a": [1, "x"]}, {"a": [int]}, r"a\[1\] is 'x' and not a whole number"),
        ({"a": [1, 2]}, {"a": [int, int, int]}, "a has 2 entries and not 3"),
        ({"a": 1}, {"a": [int]}, "a is 1 and not a list"),
        ([], {"a": int}, r"it is \[\] and not a table"),
        ({"a": {"k": "x"}}, {"a": {str: int}}, "a.k is 'x' and not a whole number"),
        ({"a": "x"}, {"a": Maybe(int)}, "a is 'x' and not a whole number"),
        ({"a": []}, {"a": (float, str)}, r"a is \[\]"),
    ],
)
def test_what_is_not_of_a_form_is_named(value: Any, form: Any, fault: str) -> None:
    with pytest.raises(RunError, match=f"^F: {fault}; do this$"):
        require(value, form, "F", "do this")


def test_what_is_of_a_form_passes() -> None:
    form = {"a": Maybe(int), "b": Maybe(int), "c": {str: [float]}, "d": (float, str), "e": [int, int], "f": bool}
    require({"b": None, "c": {"x": [1, 2.5]}, "d": "t", "e": [1, 2], "f": True, "more": []}, form, "F", "")


def _without(*path: str | int) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return change


def _with(new: Any, *path: str | int) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = new

    return change


def _edited(folder: Path, name: str, copy: Path, change: Callable[[Any], None]) -> Path:
    """A copy of `folder` whose JSON file `name` is changed."""
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    value = json.loads((copy / name).read_text())
    change(value)
    (copy / name).write_text(json.dumps(value))
    return copy


def _assert_named(result: Result, message: str) -> None:
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("fineprune: ") and result.err.count("\n") == 1, result.err
    assert message in result.err


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_without("input_shape"), "input_shape is missing"),
        (_with([1, 16], "input_shape"), "input_shape has 2 entries and not 3"),
        (_with("resnet20", "model"), "model is 'resnet20' and not a table"),
        (_without("data", "mean"), "data.mean is missing"),
        (_with([None], "data", "std"), "data.std[0] is None and not a number"),
        (_without("accuracy", "split"), "accuracy.split is missing"),
        (_without("ratios", "achieved", "fwp"), "ratios.achieved.fwp is missing"),
        (_without("macs", "layers", 0, "macs"), "macs.layers[0].macs is missing"),
        (_with({}, "training", "finetune"), "training.finetune.history is missing"),
        (_with({"stem": {"ffp": "1"}}, "mask_shapes"), "mask_shapes.stem.ffp is '1' and not a list"),
        (_without("sha256", "masks.safetensors"), "sha256.masks.safetensors is missing"),
    ],
)
def test_an_edited_manifest(bundle: Path, tmp_path: Path, change: Callable[[Any], None], fault: str) -> None:
    edited = _edited(bundle, "manifest.json", tmp_path / "b", change)
    for command in (["macs"], ["report", "--output", tmp_path / "r.html"]):
        _assert_named(fineprune(command[0], edited, *command[1:]), f"b/manifest.json: {fault}; it was edited, compress again")


def test_edited_statistics(trained: list[object], tmp_path: Path) -> None:
    options = [*trained, "--ffp", 0.3, "--samples", 40]
    succeed("calibrate", *options, "--output", tmp_path / "s")
    changes = [
        (_without("kind"), "kind is missing"),
        (_with("many", "samples"), "samples is 'many' and not a whole number"),
        (_with([], "settings"), "settings is [] and not a table"),
        (_with("0" * 64, "sha256"), "statistics.safetensors does not match the hash in statistics.json; it was truncated or altered"),
    ]
    for number, (change, fault) in enumerate(changes):
        edited = _edited(tmp_path / "s" / "blocks", "statistics.json", tmp_path / str(number) / "blocks", change)
        result = fineprune("compress", *options, "--epochs", 0, "--statistics", edited.parent, "--output", tmp_path / "b")
        _assert_named(result, fault)
        assert f"delete {edited} and calibrate again" in result.err


def test_edited_latencies(bundle: Path, tmp_path: Path) -> None:
    row = {"runtime": "a", "batch_size": 1, "threads": 1, "median_ms": 1.0, "p25_ms": 0.9, "p75_ms": 1.2}
    other = {**row, "runtime": "b"}
    report = {"rows": [row, other, {**row, "threads": 2}], "config": {"rounds": 3}, "machine": {"cpu": "x", "usable_cores": 2}}
    for change, fault in (
        (_without("rows", 1, "p25_ms"), "rows[1].p25_ms is missing"),
        (_with([], "rows"), "rows is empty"),
        (_with({}, "machine"), "machine.cpu is missing"),
    ):
        value = json.loads(json.dumps(report))
        change(value)
        (tmp_path / "times.json").write_text(json.dumps(value))
        result = fineprune("report", bundle, "--bench", tmp_path / "times.json", "--output", tmp_path / "r.html")
        _assert_named(result, f"times.json: {fault}; it holds no latencies, or was edited; write it by `fineprune bench --json`")
    (tmp_path / "times.json").write_text(json.dumps(report))  # b was not measured with two threads
    succeed("report", bundle, "--bench", tmp_path / "times.json", "--output", tmp_path / "r.html")


def test_an_edited_record_of_a_stage_counts_as_none(tmp_path: Path) -> None:
    record = {"key": "k", "result": {"accuracy": 0.5, "list": [1, 2.5, None]}, "outputs": {"file": "absent"}}
    path = tmp_path / "train.json"
    written = {**record, "sha256": _digest(record)}
    path.write_text(json.dumps(written))
    assert _read_record(path) == record
    for change in (_without("sha256"), _without("result", "accuracy"), _with(0.9, "result", "accuracy"), _with({}, "outputs")):
        value = json.loads(json.dumps(written))
        change(value)
        path.write_text(json.dumps(value))
        assert _read_record(path) is None
    path.write_text("[]")
    assert _read_record(path) is None
