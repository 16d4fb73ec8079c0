"""What a long run says of itself: bars on a terminal, a line now and then elsewhere, nothing where it is short."""

import io
import itertools
import time

import pytest
from rich.console import Console

from fineprune.common import progress as module
from fineprune.common.progress import Bars, Lines, Progress, Silent, working


class Heard(Silent):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that go by from one look at the clock to the next, all alike."""
    step = [1.0]
    now = itertools.accumulate(itertools.repeat(1), lambda total, _: total + step[0], initial=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    return step


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_a_long_loop_says_a_line_each_half_minute(
    kind: type[Lines] | type[Bars], clock: list[float], capsys: pytest.CaptureFixture
) -> None:
    assert list(kind()(range(100), total=100, description="calibrating blocks")) == list(range(100))
    assert capsys.readouterr().err.splitlines() == [
        "calibrating blocks: 30 of 100 after 30 s, about 1:10 min left",
        "calibrating blocks: 60 of 100 after 1:00 min, about 40 s left",
        "calibrating blocks: 90 of 100 after 1:30 min, about 10 s left",
    ]


def test_a_resumed_loop_and_one_without_an_end(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    clock[0] = 1800.0
    texts = iter(("epoch 2", "epoch 3"))
    list(Lines()(range(2), total=9, start=4, description=lambda: next(texts)))
    list(Lines()(range(1), total=None, description="decoding\x1b[2J"))
    assert capsys.readouterr().err.splitlines() == [
        "epoch 2: 5 of 9 after 30:00 min, about 2:00 h left",
        "epoch 3: 6 of 9 after 1:00 h, about 1:30 h left",
        "decoding\\x1b[2J: 1 after 30:00 min",
    ]


@pytest.mark.parametrize("kind", [Lines, Bars, Silent])
def test_short_loops_say_nothing(kind: type[Progress], capsys: pytest.CaptureFixture) -> None:
    assert list(kind()("abc", total=3, description="x")) == ["a", "b", "c"]
    with working(kind(), "exporting"):
        pass
    assert capsys.readouterr() == ("", "")


def test_lines_shows_what_is_finished(capsys: pytest.CaptureFixture) -> None:
    Lines().log("dense: test accuracy [97 %]")
    Silent().log("unseen")
    assert capsys.readouterr() == ("", "dense: test accuracy [97 %]\n")


def test_work_that_is_no_loop_is_heard_of_and_stops_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    heard = Heard()
    with pytest.raises(ZeroDivisionError), working(heard, "exporting"):
        while not heard.lines:
            time.sleep(0.005)
        raise ZeroDivisionError
    assert set(heard.lines) == {"exporting: 0 s so far"}
    said = len(heard.lines)
    time.sleep(0.03)
    assert len(heard.lines) == said


def test_bars_show_names_as_they_are() -> None:
    bars = Bars()
    bars._console = Console(file=io.StringIO(), force_terminal=True, width=120)
    list(bars([1], total=1, description="reading [red]my[/red] [/folder]"))
    assert "reading [red]my[/red] [/folder]" in bars._console.file.getvalue()  # type: ignore[attr-defined]
