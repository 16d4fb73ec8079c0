"""benchmarks/same_bits.py: a run gives the same facts twice, and the comparison sees one bit."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import same_bits
import same_bits_facts
import same_bits_runs

RUN = {"tiny": lambda: same_bits_runs.train("--model lenet --data npz:colour.npz --epochs 1 --batch-size 64")}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of one tiny training, made twice."""
    folder = tmp_path_factory.mktemp("facts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(same_bits, "cases", lambda: RUN)
        for name in ("a.json", "b.json"):
            assert same_bits.record(folder / name, ["*"]) == 0
    return same_bits.read(folder / "a.json"), same_bits.read(folder / "b.json")


def test_two_runs_of_one_commit_are_equal(recorded: tuple[dict[str, Any], dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert same_bits.compare(*recorded, []) == 0
    facts = recorded[0]["runs"]["tiny"]["facts"]
    assert {"out/model.safetensors:numbers", "out/training.json:history[0].train_loss"} <= facts.keys()
    assert f"{len(facts)} facts are equal, 0 are not" in capsys.readouterr().out
    assert not any("seconds" in name or "packages" in name for name in facts)


@pytest.mark.parametrize("excepted", [[], ["tiny"], ["tiny/*numbers"], ["other"]])
def test_another_fact_is_named_unless_it_is_excepted(
    recorded: tuple[dict[str, Any], dict[str, Any]], capsys: pytest.CaptureFixture[str], excepted: list[str]
) -> None:
    other = deepcopy(recorded[1])
    other["runs"]["tiny"]["facts"]["out/model.safetensors:numbers"] = "0"
    found = same_bits.compare(recorded[0], other, excepted)
    named = "tiny/out/model.safetensors:numbers: " in capsys.readouterr().out
    assert (found, named) == ((0, False) if excepted and excepted[0].startswith("tiny") else (1, True))


def test_runs_that_are_missing_or_fail_are_no_proof(recorded: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert same_bits.compare(recorded[0], {**recorded[1], "runs": {}}, []) == 1
    assert same_bits.compare({**recorded[0], "runs": {}}, {**recorded[1], "runs": {}}, []) == 1
    failed = {**recorded[0], "runs": {"tiny": {"facts": {"error": "RuntimeError: no"}}}}
    assert same_bits.compare(failed, failed, []) == 1


def test_a_digest_sees_one_bit_the_shape_and_the_type() -> None:
    numbers = np.zeros((2, 3), np.float32)
    changed = numbers.copy()
    changed.view(np.uint8).reshape(-1)[0] ^= 1
    variants = [numbers, changed, numbers.reshape(3, 2), numbers.view(np.int32), -numbers]
    assert len({same_bits_facts.array_digest(array) for array in variants}) == len(variants)
    assert same_bits_facts.array_digest(numbers.T) == same_bits_facts.array_digest(numbers.T.copy())


def test_files_are_read_without_what_another_run_may_have_otherwise(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(json.dumps({"a": [{"b": 1, "seconds": 2.5}, []], "packages": {"torch": "1"}}))
    assert same_bits_facts.folder_facts(tmp_path) == {f"{tmp_path}/facts.json:a[0].b": 1, f"{tmp_path}/facts.json:a[1]": []}


def test_every_run_has_a_name_of_its_own() -> None:
    tables = (same_bits_runs.TRAININGS, same_bits_runs.CALIBRATIONS, same_bits_runs.BUNDLES, same_bits_runs.DENSE)
    assert len(same_bits_runs.cases()) >= sum(map(len, tables)) + 2
    assert set(same_bits_runs.PLAIN) <= same_bits_runs.BUNDLES.keys()
