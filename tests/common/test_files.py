"""Writers leave a whole file or none, and the next one clears what a killed one left."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fineprune.common.errors import RunError
from fineprune.common.files import atomic_path, check_writable, read_json, remove_leftovers, write_bytes

WRITER = """
import os, sys
from pathlib import Path
from fineprune.common import files

target, moment = Path(sys.argv[1]), sys.argv[2]

def stop():
    print("there", flush=True)
    sys.stdin.read()

rename = Path.rename

def rename_and_stop(self, other):
    rename(self, other)
    if self == target:
        stop()

Path.rename = rename_and_stop
with files.atomic_path(target) as temporary:
    temporary.mkdir()
    (temporary / "new").write_text("half" if moment == "writing" else "whole")
    if moment == "writing":
        stop()
"""


@contextmanager
def writer(target: Path, moment: str) -> Iterator[subprocess.Popen]:
    """A process that has come to that moment of replacing the folder `target`."""
    with subprocess.Popen([sys.executable, "-c", WRITER, target, moment], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        try:
            yield process
        finally:
            process.kill()


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_what_a_killed_writer_left_is_gone_after_the_next(tmp_path: Path) -> None:
    with writer(tmp_path / "b", "writing") as process:
        process.kill()
    assert len(hidden(tmp_path)) == 1
    write_bytes(tmp_path / "c", b"another target")
    assert len(hidden(tmp_path)) == 1
    write_bytes(tmp_path / "b", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_a_live_writer_keeps_its_scratch_folder(tmp_path: Path) -> None:
    with writer(tmp_path / "b", "writing"):
        write_bytes(tmp_path / "b", b"whole")
        assert len(hidden(tmp_path)) == 1
        with atomic_path(tmp_path / "c") as mine:
            remove_leftovers(tmp_path / "c")  # nor does a thread of the same process lose its own
            mine.write_text("kept")
    remove_leftovers(tmp_path / "b")
    assert not hidden(tmp_path) and (tmp_path / "c").read_text() == "kept"


def test_a_writer_killed_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").write_text("old")
    with writer(tmp_path / "b", "replacing") as process:
        process.kill()
    assert not (tmp_path / "b").exists()
    remove_leftovers(tmp_path / "b")
    assert (tmp_path / "b" / "new").read_text() == "whole" and not hidden(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "b.txt"])
def test_hidden_folders_that_are_no_leftovers_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / ".b.original").mkdir()
    (tmp_path / ".b.original" / name).write_text("mine")
    (tmp_path / ".b.link").symlink_to(tmp_path / ".b.original")
    (tmp_path / ".b.swp").write_text("mine")
    write_bytes(tmp_path / "b", b"whole")
    check_writable(tmp_path / "b")
    assert sorted(hidden(tmp_path)) == [".b.link", ".b.original", ".b.swp"]
    assert (tmp_path / ".b.original" / name).read_text() == "mine"


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "b", b"old")
    with pytest.raises(KeyError), atomic_path(tmp_path / "b") as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert (tmp_path / "b").read_bytes() == b"old" and not hidden(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 100_000, "it nests without end"),
        ("[" * 60 + "]" * 60, "it nests more than 50 levels"),
        (f'{{"a": [1{"0" * 5000}]}}', r"Exceeds the limit \(4300 digits\) for integer string conversion: value has 5001 digits"),
        (f'{{"a": 1{"0" * 400}}}', "it holds a whole number of more than 64 bits"),
        ("[1e999]", "it holds the number inf"),
        ('{"a": NaN}', "it holds the number nan"),
        ('{"a": 1', "Expecting ',' delimiter: line 1 column 8 .*"),
        (" " * (17 << 20), "it is longer than 16 MiB"),
    ],
)
def test_json_unlike_any_that_is_written_here(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(RunError, match=rf"f\.json is not valid JSON \({fault}\); it was truncated or edited, write it again$"):
        read_json(tmp_path / "f.json")
    (tmp_path / "f.json").write_text(f'{{"seed": {2**64 - 1}, "x": [-1.5, null]}}')
    assert read_json(tmp_path / "f.json") == {"seed": 2**64 - 1, "x": [-1.5, None]}
