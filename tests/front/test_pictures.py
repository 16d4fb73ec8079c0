"""Figures as files."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fineprune.common.errors import RunError, UsageError
from fineprune.pictures import check_picture, picture, write_picture


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([1, 3, 2], label="words")
    return drawn


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, start in (("f.svg", b"<?xml"), ("f.png", b"\x89PNG")):
        write_picture(figure(), tmp_path / name)
        first = (tmp_path / name).read_bytes()
        assert first.startswith(start)
        write_picture(figure(), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
    assert b"<dc:date>" not in picture(figure(), "svg")
    assert picture(figure(), "svg", salt="a") != picture(figure(), "svg", salt="b")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*f\.png"):
        write_picture(figure(), tmp_path / "file" / "f.png")
    with pytest.raises(RunError, match=r"cannot write .*f\.svg"):
        check_picture(tmp_path / "file" / "f.svg")
    with pytest.raises(UsageError, match=r"--plot writes \.png or \.svg, got .*f\.jpg"):
        check_picture(tmp_path / "f.jpg")
    check_picture(tmp_path / "f.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
