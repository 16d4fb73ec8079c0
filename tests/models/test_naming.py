"""Names that are no network or data set: what they were meant to be, where a file tells."""

from pathlib import Path

import pytest

from fineprune.common.errors import UsageError
from fineprune.models.data import load_data
from fineprune.models.naming import callables, meant_as_data, meant_as_model
from fineprune.models.zoo import build


def test_callables_are_read_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("raise SystemExit\nclass Net: pass\ndef net(): pass\ndef _hidden(): pass\nasync def later(): pass\nx = 3\n")
    assert callables(path) == ["net", "Net"]
    path.write_bytes(b"\x00\xff")
    assert callables(path) == []
    path.write_text("(" * 100_000)
    assert callables(path) == []


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + ":b/c", "a\0b", "\ud800"])
def test_names_that_no_file_can_have(name: str) -> None:
    assert meant_as_model(name) == meant_as_data(name) == ""
    for call in (build, load_data):
        with pytest.raises(UsageError, match="unknown"):
            call(name)
