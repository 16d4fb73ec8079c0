"""Networks of torchvision, timm and public repositories from calibration to the bench (benchmarks/networks.py has the table)."""

import os
from pathlib import Path

import networks
import pytest
import torch

REPOSITORIES = Path(os.environ["FINEPRUNE_REPOSITORIES"]) if "FINEPRUNE_REPOSITORIES" in os.environ else None
NAMES = [*(f"torchvision:{name}" for name in networks.TORCHVISION), *(f"timm:{name}" for name in networks.TIMM), *networks.REPOSITORIES]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of their own code
@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_others_runs_from_calibration_to_the_bench(name: str) -> None:
    if name not in networks.names(REPOSITORIES):
        pytest.skip("timm is not installed, or no clone is in the folder that FINEPRUNE_REPOSITORIES names")
    linear, size = name.partition(":")[2] in networks.TOKENS, networks.size_of(name)
    model = networks.network_of(name, REPOSITORIES)
    assert networks.tells(model, torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))) > 1e-2
    facts = networks.row(model, size, linear=linear)
    assert facts["parity"]["passed"]
    assert {"onnxruntime", "engine"} <= networks.differences(facts["parity"]).keys()
    assert facts["masked"] and facts["pruned"] > 0.1


def test_the_table_names_what_is_left_dense() -> None:
    facts = {"name": "a", "masked": 3, "weights_only": 1, "left": {"why": 2}, "macs": 5e6, "pruned": 0.5}
    runtimes = {"runtimes": [{"runtime": "engine", "relative_error": 1e-7}]}
    rows = networks.table([{**facts, "parity": runtimes}, {"name": "b", "error": "no"}]).splitlines()
    assert rows[2:] == ["| a | 3 (1) | 2: why | 5 | 50% |  | 1e-07 |", "| b | no | | | | | |"]
