"""The choice among kernels is good: by times that benchmarks/choice.py measured, so that nothing is measured here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import choice
import numpy as np
import pytest

from fineprune.export.engine.ir import costs
from fineprune.export.engine.ir.costs import Costs

RECORD = Path(__file__).with_name("choice_avx2.json")
MEDIAN, MOST, WORST = 1.02, 1.4, 2.2
"""Regrets that are allowed: in the median, in 90 % of the layers, in the worst case."""


def found(table: str) -> np.ndarray:
    """Regrets by the assumed or the measured costs of the machine of the record. Forms of kernels depend on registers, so that a machine
    of another kind asks a process that takes itself for one of this kind."""
    record = json.loads(RECORD.read_text())
    if costs.registers() == record["registers"]:
        return np.array(
            list(choice.regrets(record, Costs.assumed(record["registers"]) if table == "assumed" else Costs(record["costs"])).values())
        )
    code = f"import json, test_choice; print(json.dumps(test_choice.found({table!r}).tolist()))"
    path = os.pathsep.join([str(RECORD.parent), str(Path(choice.__file__).parent), *sys.path])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "NUMBA_DISABLE_JIT": "1",
        "NUMBA_CPU_NAME": "znver3",
        "NUMBA_CPU_FEATURES": "+avx2,+fma",
    }
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return np.array(json.loads(answer.stdout))


@pytest.mark.parametrize("table", ["assumed", "measured"])
def test_what_is_chosen_is_about_as_fast_as_the_fastest(table: str) -> None:
    regrets = found(table)
    assert len(regrets) >= 100
    assert (regrets >= 1).all()
    assert np.median(regrets) <= MEDIAN
    assert np.quantile(regrets, 0.9) <= MOST
    assert regrets.max() <= WORST


def test_a_bad_table_is_seen() -> None:
    record = json.loads(RECORD.read_text())
    if costs.registers() != record["registers"]:
        pytest.skip("the record is of other registers")
    bad = {name: value * (0.1 if name.startswith("positions") else 1) for name, value in record["costs"].items()}
    regrets = np.array(list(choice.regrets(record, Costs(bad)).values()))
    assert np.quantile(regrets, 0.9) > MOST


def test_a_record_is_json() -> None:
    record = {"seed": 1, "registers": "avx2", "layers": {"0: a": {"filters 1 6": 2.5}, "1: b": {"linear": 3.0}}}
    assert json.loads(choice.written(record)) == record
