"""Programs that are kept: the same bits, for the same file, whole or not at all; and then nothing is loaded to plan with."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from fineprune.common.errors import UsageError
from fineprune.export.engine import Session
from fineprune.export.engine.run import machine, plans
from fineprune.ops.keeper import Keeper
from support.onnx_graphs import append, conv_graph, serialize
from support.random_networks import RandomNetwork


@pytest.fixture(autouse=True)
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """Of a folder of its own; compiled code comes from where it lies."""
    monkeypatch.setenv("FINEPRUNE_PLANS", "kept")
    made = Keeper("tested", Path(plans.__file__).parent)
    monkeypatch.setattr(made, "folder", tmp_path)
    monkeypatch.setattr(plans, "KEEPER", made)
    return made


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each network that is planned."""
    calls: list[str] = []
    plan = Session._plan

    def counted(self: Session, content: bytes, where: str, tune: bool, fallback: bool) -> None:
        calls.append(where)
        plan(self, content, where, tune, fallback)

    monkeypatch.setattr(Session, "_plan", counted)
    return calls


def network(seed: int = 0) -> bytes:
    weights = np.random.default_rng(seed).standard_normal((5, 3, 3, 3), np.float32)
    return serialize(conv_graph((3, 6, 6), (5, 6, 6), weights, np.arange(5), pads=(1, 1, 1, 1)))


def outputs(source: bytes | Path, batch: int = 3, threads: int = 1, **options: bool) -> list[NDArray]:
    with Session(source, threads, **options) as session:
        shape = [size for size in session.get_inputs()[0].shape if isinstance(size, int)]
        x = np.random.default_rng(1).standard_normal((batch, *shape), np.float32)
        return session.run(None, {session.get_inputs()[0].name: x})


@pytest.mark.parametrize("seed", [0, 3])
def test_a_kept_plan_gives_the_same_bits(seed: int, planned: list[str]) -> None:
    content = RandomNetwork(seed, 12).serialized()
    with Session(content) as first, Session(content, 2) as second:
        assert len(planned) == 1
        assert (first.get_inputs(), first.get_outputs()) == (second.get_inputs(), second.get_outputs())
        shape = [size for size in first.get_inputs()[0].shape if isinstance(size, int)]
        for batch in (1, 3):
            x = np.random.default_rng(batch).standard_normal((batch, *shape), np.float32)
            for one, other in zip(first.run(None, {"x": x}), second.run(None, {"x": x}), strict=True):
                np.testing.assert_array_equal(one, other)
        records = [session.profile(x, repeats=1) for session in (first, second)]
        assert [(r.name, r.kernel, r.layout, r.macs, r.reason) for r in records[0]] == [
            (r.name, r.kernel, r.layout, r.macs, r.reason) for r in records[1]
        ]


def test_a_file_is_known_by_its_bytes(tmp_path: Path, planned: list[str]) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(network())
    first = outputs(path)
    np.testing.assert_array_equal(outputs(network()), first)
    assert planned == [str(path)]
    path.write_bytes(network(seed=1))
    assert not np.array_equal(outputs(path), first)
    assert planned == [str(path)] * 2
    outputs(network(), tune=True)
    assert len(planned) == 3


def test_what_is_damaged_is_planned_anew(tmp_path: Path, planned: list[str]) -> None:
    first = outputs(network())
    [path] = tmp_path.glob("plan-*")
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-70] + bytes([whole[-70] ^ 1]) + whole[-69:]):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(outputs(network()), first)
    assert len(planned) == 4
    np.testing.assert_array_equal(outputs(network()), first)
    assert len(planned) == 4


def test_other_costs_make_other_plans(planned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    outputs(network())
    monkeypatch.setattr(machine, "digest", lambda: "other")
    outputs(network())
    assert len(planned) == 2


@pytest.mark.parametrize("folder", ["none", "gone"])
def test_where_nothing_can_be_kept_everything_runs(
    folder: str, keeper: Keeper, tmp_path: Path, planned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(keeper, "folder", None if folder == "none" else tmp_path / "file" / "gone")
    np.testing.assert_array_equal(outputs(network()), outputs(network()))
    assert len(planned) == 2


@pytest.mark.parametrize("last", ["Mod", "Softmax"])
def test_what_onnxruntime_runs_is_kept_with_the_rest(last: str, planned: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = conv_graph((3, 6, 6), (5, 4, 4), np.ones((5, 3, 3, 3)))
    append(model, "Mod", {"two": np.array(2, np.float32)}, fmod=1).outputs[0].name = "m"
    if last == "Softmax":
        append(model, "Softmax", {}, axis=1)
    results = [outputs(serialize(model), threads=threads) for threads in (1, 1, 2)]
    assert len(planned) == 1
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert caplog.text.count("run in ONNX Runtime: Mod (operator)") == 3


def test_outputs_that_the_engine_could_not_hold_are_planned_anew(planned: list[str]) -> None:
    model = conv_graph((3, 6, 6), (5, 4, 4), np.ones((5, 3, 3, 3)))
    append(model, "Greater", {"two": np.array(2, np.float32)}).outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    for _ in range(2):
        outputs(serialize(model))
    assert len(planned) == 2


def test_the_newest_stay(planned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "PLANS", 2)
    for seed in range(3):
        outputs(network(seed))
        for path in tmp_path.glob("plan-*"):  # clocks are coarse
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))
    assert len(list(tmp_path.glob("plan-*"))) == 2
    outputs(network(2))
    outputs(network(1))
    assert len(planned) == 3
    outputs(network(0))
    assert len(planned) == 4


def test_the_variable_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEPRUNE_PLANS", "perhaps")
    with pytest.raises(UsageError, match="FINEPRUNE_PLANS is kept or anew, got 'perhaps'"):
        Session(network())


RECALLED = """
import sys
import numpy as np
from fineprune.export.engine import Session
with Session(sys.argv[1], fallback=False) as session:
    y = session.run(None, {"x": np.ones((1, 3, 6, 6), np.float32)})[0]
print(y.sum(), sorted({"numba", "onnx", "onnxruntime", "torch"} & set(sys.modules)))
"""


def test_what_was_planned_and_compiled_before_needs_no_compiler(tmp_path: Path) -> None:
    (tmp_path / "network.onnx").write_bytes(network())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "FINEPRUNE_PLANS": "kept"}
    command = [sys.executable, "-c", RECALLED, str(tmp_path / "network.onnx")]
    first, second = (subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2))
    assert second.stdout.endswith(" []\n"), second.stderr
    assert first.stdout.split()[0] == second.stdout.split()[0], first.stderr
