"""benchmarks/two_live.py: both sides run the same work in their own process, and rows are ratios of pairs."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import two_live
from onnx import TensorProto, helper


def relu(path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 3, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_what_a_process_runs_is_the_file_in_the_engine(tmp_path: Path) -> None:
    [(name, run)] = two_live.runs([relu(tmp_path / "relu.onnx")], [1], False, tmp_path)
    assert name == f"{tmp_path.name}/relu, 1 thread"
    [y] = run()  # type: ignore[misc]
    assert y.shape == (1, 2, 3, 3) and (np.asarray(y) >= 0).all()


def test_two_processes_take_turns_and_a_row_is_the_median_of_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file, python = relu(tmp_path / "relu.onnx"), sys.executable
    options = ["two_live.py", python, python, str(file), "--pairs", "3", "--turn", "0.001", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", options)
    two_live.main()
    rows = capfd.readouterr().out.splitlines()
    assert rows[0].startswith(f"| {tmp_path.name}/relu, 1 thread | ") and rows[-1].startswith("| median of 1 rows | | ")
    assert float(rows[0].split("|")[3]) > 0


def test_rows_beyond_three_per_cent_are_marked() -> None:
    assert two_live.row("n", [1.0, 1.0, 1.02, 1.02, 1.04], 2e-3) == "| n | 2.000 ms | 1.020 | 1.000 to 1.030 |  |"
    assert two_live.row("n", [1.1, 1.1, 1.2, 1.3, 1.3], 2e-3).endswith("| 1.200 | 1.100 to 1.300 | beyond |")
