"""A seeded sample of benchmarks/mutated_files.py: damaged files are read or refused in one clear line."""

import warnings

import pytest
from mutated_files import FAULTS, read_one
from mutated_kinds import KINDS

INPUTS = {"statistics": 25, "bundles": 25, "recipes": 80, "npz": 60, "checkpoints": 60, "images": 40, "networks": 60}


@pytest.mark.parametrize("kind", INPUTS)
def test_damaged_files_are_read_or_refused(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about what is odd in the files
        sound = KINDS[kind].sound()
        found = [(number, *read_one(kind, number, 1, sound)) for number in range(INPUTS[kind])]
    assert {outcome for _, outcome, _ in found} == {"accepted", "refused"}, [f for f in found if f[1] in FAULTS]
