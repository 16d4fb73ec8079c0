"""Costs of a machine: how they are found from times, and how they are kept."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from fineprune.common.errors import RunError, UsageError
from fineprune.export.engine import Session
from fineprune.export.engine.ir import costs
from fineprune.export.engine.ir.costs import Costs
from fineprune.export.engine.ops.conv import dense_counts
from fineprune.export.engine.run import dense, machine, measure, trials
from fineprune.ops.keeper import Keeper

GUESS = Costs({"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0})
COUNTS = [{"a": 10, "b": 3}, {"a": 2, "b": 30, "c": 1}, {"b": 5, "c": 50}, {"a": 7, "c": 7}, {"a": 100, "b": 1}, {"c": 20, "a": 1}]


def test_costs_are_those_that_explain_the_times() -> None:
    real = Costs({"a": 3.0, "b": 5.0, "c": 9.0})
    found = measure.fitted(COUNTS, np.array([real.seconds(each) for each in COUNTS]), GUESS)
    assert [found[name] for name in "abc"] == pytest.approx([3, 5, 9], rel=0.01)


def test_what_was_not_measured_keeps_its_proportion() -> None:
    times = np.array([3 * GUESS.seconds(each) for each in COUNTS])
    found = measure.fitted(COUNTS, times, GUESS)
    assert [found[name] for name in "abcd"] == pytest.approx([3, 6, 12, 24], rel=0.01)


def test_no_cost_is_negative() -> None:
    """Where times fall with a count, its cost is what is left of the guess at least."""
    counts = [{"a": 10}, {"a": 10, "b": 5}, {"a": 10, "b": 10}]
    found = measure.fitted(counts, np.array([20e-9, 15e-9, 10e-9]), GUESS)
    assert found["a"] > 0
    assert found["b"] == pytest.approx(measure.LEAST * 2.0 * found["d"] / 8.0)


def test_trials_count_what_is_listed() -> None:
    names = {name for trial in measure.trials() for name, count in trial.counts.items() if count}
    names |= {name for each in dense.COMPARED for name in dense_counts(*each)}
    assert names <= set(costs.assumed().nanoseconds)
    missing = set(costs.assumed().nanoseconds) - names
    assert {name.partition(".")[0] for name in missing} <= {
        "filters",
        "positions",
        "plain",
        "convert",
        "permute",
        "nchw",
        "dense",
        "quad_permute",
    }
    assert not {name for name in missing if ".entry" in name or ".pair" in name or ".single" in name}


PARTS = ("filters.result", "positions.output", "linear.weight", "quad_positions.product", "quad_filters.product", "quad_depthwise.taps.1")


def test_trials_are_timed() -> None:
    chosen = [next(t for t in measure.trials() if prefix in t.counts) for prefix in PARTS]
    chosen.append(trials.conversion((3, 5, 7)))
    times = trials.measured(chosen, 0.01)
    assert times.shape == (len(PARTS) + 1,) and (times > 0).all()
    assert (dense.measured(dense.COMPARED[7:9], 0.01) > 0).all()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Costs are kept in a folder of the test; the list grows with each measurement."""
    found: list[int] = []

    def fitted(*arguments: object) -> Costs:
        found.append(len(found))
        return Costs({name: value * (len(found) + 1) for name, value in costs.assumed().nanoseconds.items()})

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv(machine.VARIABLE, machine.MEASURED)
    monkeypatch.setattr(machine, "KEEPER", Keeper("test", Path(machine.__file__).parent))
    monkeypatch.setattr(machine, "uncompiled", lambda: False)
    monkeypatch.setattr(measure, "trials", lambda: iter(()))
    monkeypatch.setattr(measure, "measured", lambda *given: np.zeros(0))
    monkeypatch.setattr(dense, "measured", lambda *given: np.zeros(0))
    monkeypatch.setattr(measure, "fitted", fitted)
    machine._kept_or_measured.cache_clear()
    yield found
    machine._kept_or_measured.cache_clear()


def test_a_machine_is_measured_once(kept: list[int]) -> None:
    first = machine.table()
    assert machine.table() is first
    machine._kept_or_measured.cache_clear()  # as in another process
    assert dict(machine.table().nanoseconds) == dict(first.nanoseconds)
    assert machine.digest() == machine.table().digest == first.digest != costs.assumed().digest
    assert kept == [0]
    assert machine.redone().digest != first.digest
    assert machine.table().digest != first.digest
    assert kept == [0, 1]


def test_nobody_measures_where_nothing_is_chosen(kept: list[int]) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 3, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Sin", ["x"], ["y"])], "g", values[:1], values[1:])
    elsewhere = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    Session(elsewhere.SerializeToString()).close()
    with pytest.raises(RunError):
        Session(b"damaged")
    assert not kept and machine.digest() == ""


def test_damaged_costs_are_measured_again(kept: list[int], tmp_path: Path) -> None:
    machine.table()
    [path] = [path for path in tmp_path.rglob("costs-*") if path.is_file()]
    path.write_bytes(path.read_bytes()[:-1])
    machine._kept_or_measured.cache_clear()
    machine.table()
    assert kept == [0, 1]


def test_another_onnx_runtime_is_another_machine(kept: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    machine.table()
    monkeypatch.setattr(machine, "_version", lambda: "99")
    machine._kept_or_measured.cache_clear()
    machine.table()
    assert kept == [0, 1]


def test_assumed_where_nothing_can_be_kept(kept: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.KEEPER, "folder", None)
    assert machine.table().digest == costs.assumed().digest
    assert not kept


def test_assumed_where_kernels_are_not_compiled(kept: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "uncompiled", lambda: True)
    assert machine.table().digest == costs.assumed().digest
    assert not kept


def test_the_variable_leaves_machines_unmeasured(kept: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.VARIABLE, machine.ASSUMED)
    assert machine.table() is costs.current()
    assert machine.digest() == machine.ASSUMED
    assert not kept
    monkeypatch.setenv(machine.VARIABLE, "sometimes")
    with pytest.raises(UsageError, match="FINEPRUNE_COSTS is measured or assumed, got 'sometimes'"):
        machine.table()
