"""benchmarks/two_commits.py: the order of turns, and the ratios."""

import json
import sys
from pathlib import Path

import pytest
import two_commits

PROGRAM = """
import argparse, json, pathlib, fineprune
parser = argparse.ArgumentParser()
parser.add_argument("--json", type=pathlib.Path)
with pathlib.Path("turns").open("a") as turns:
    turns.write(fineprune.NAME)
row = {"network": "n", "variant": "v", "seconds": fineprune.SECONDS}
parser.parse_args().json.write_text(json.dumps({"rows": [row], "calibration": []}))
"""


def test_turns_alternate_and_each_row_is_a_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("a", 2.0), ("b", 3.0)):
        (tmp_path / name / "fineprune").mkdir(parents=True)
        (tmp_path / name / "fineprune/__init__.py").write_text(f"NAME, SECONDS = {name!r}, {seconds}\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(sys, "argv", ["two_commits.py", "a", "b", "--rounds", "2", "--json", "all.json", "--", "program.py"])
    two_commits.main()
    assert Path("turns").read_text() == "abbaab"
    assert "| n: step, v | 1.500 | 1.500 to 1.500 | beyond |" in capfd.readouterr().out
    assert json.loads(Path("all.json").read_text()) == [[{"n: step, v": 2.0}, {"n: step, v": 3.0}]] * 2


def test_rows_of_both_benchmarks_are_read() -> None:
    latency = {"runtime": "fineprune dense", "batch_size": 1, "threads": 2, "median_ms": 0.5, "speedup": 4.0}
    step, calibration = {"network": "n", "variant": "v", "seconds": 0.1}, {"network": "n", "pass": "p", "samples_per_second": 4.0}
    found = dict(two_commits.times({"networks": {"r": {"latency": [latency]}}, "rows": [step], "calibration": [calibration]}))
    row = "r: fineprune dense, batch 1, threads 2"
    assert found == {row: 0.5, f"{row}, in times of the baseline": 0.25, "n: step, v": 0.1, "n: p": 0.25}


def test_each_checkout_runs_its_own_benchmark(tmp_path: Path) -> None:
    package = tmp_path / "checkout/src/fineprune"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "checkout/benchmarks").mkdir()
    (tmp_path / "checkout/benchmarks/engine.py").touch()
    (tmp_path / "links").mkdir()
    (tmp_path / "links/fineprune").symlink_to(package)
    assert two_commits.program(tmp_path / "links", "benchmarks/engine.py") == tmp_path / "checkout/benchmarks/engine.py"
    assert two_commits.program(tmp_path / "links", "other.py") == Path("other.py")
