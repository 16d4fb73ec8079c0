"""What is kept is there for the same sources, versions and CPU, whole or not at all; where nothing can be kept nothing fails."""

import logging
import os
from pathlib import Path

import pytest

from fineprune.ops import keeper
from fineprune.ops.keeper import Keeper


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "source.py").write_text("one = 1")
    return tmp_path


def of(folder: Path) -> Keeper:
    return Keeper("tested", folder / "package")


def test_what_was_written_is_read_by_the_same_sources(folder: Path) -> None:
    of(folder).write("some", b"con", b"tent")
    assert of(folder).read("some") == b"content"
    assert of(folder).read("other") is None
    (folder / "package" / "source.py").write_text("one = 2")
    assert of(folder).read("some") is None


@pytest.mark.parametrize("told", [("NUMBA_CPU_NAME", "generic"), ("NUMBA_OPT", "1")])
def test_what_numba_is_told_keeps_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[str, str]) -> None:
    of(folder).write("some", b"content")
    monkeypatch.setenv(*told)
    assert of(folder).read("some") is None
    of(folder).write("some", b"other")
    monkeypatch.delenv(told[0])
    assert of(folder).read("some") == b"content"


def test_what_is_damaged_is_not_there(folder: Path) -> None:
    of(folder).write("some", b"content")
    [path] = (folder / "kept").rglob("some-*")
    whole = path.read_bytes()
    for damaged in (b"", b"damaged", whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:], whole[:-1] + b"x"):
        path.write_bytes(damaged)
        assert of(folder).read("some") is None


def test_what_others_may_write_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = of(folder).folder
    assert first is not None and first.is_relative_to(folder / "kept")
    first.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
    second = of(folder).folder
    assert second is not None and second.is_relative_to(folder / "home")


def test_where_nothing_can_be_written_nothing_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").touch()
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(folder / "file"))
    monkeypatch.setattr(keeper.tempfile, "gettempdir", lambda: str(folder / "file"))
    kept = of(folder)
    with caplog.at_level(logging.WARNING):
        assert kept.folder is None
    assert "every process compiles anew" in caplog.text
    kept.write("some", b"content")
    assert kept.read("some") is None


def test_a_full_disk_is_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(path: Path) -> None:
        raise keeper.RunError("no space left")

    monkeypatch.setattr(keeper, "atomic_path", full)
    of(folder).write("some", b"content")
    assert "no space left" in caplog.text


def test_of_a_kind_the_newest_stay(folder: Path) -> None:
    kept = of(folder)
    for name in ("plan-a", "plan-b", "code"):
        kept.write(name, bytes(1000))
    kept.bound("plan", 9, 5000)
    assert kept.read("plan-a") and kept.read("plan-b")
    for path in (folder / "kept").rglob("plan-*"):
        os.utime(path, (0, 0))
    kept.used("plan-a")
    kept.bound("plan", 9, 2000)
    assert kept.read("plan-a") and kept.read("code") and not kept.read("plan-b")
    kept.bound("plan", 0, 5000)
    assert kept.read("code") and not kept.read("plan-a")
