"""Progress as an argument: library functions take a `Progress`, the command line passes one that draws bars."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from .text import printable

T = TypeVar("T")
Description = str | Callable[[], str]
"""Text, or what to ask for it after every item, where it changes while the loop runs."""

EVERY_S = 30.0
"""Between two lines about what goes on, where no bar is drawn; what takes less than that says nothing."""


class Progress(Protocol):
    """Wraps the iterable of a long loop and reports on it."""

    def __call__(self, items: Iterable[T], *, total: int | None, description: Description, start: int = 0) -> Iterator[T]:
        """Yield every item of `items` unchanged; `start` items of `total` were done by an earlier run."""
        ...

    def log(self, message: str) -> None:
        """Show one finished line (an epoch's result, a layer left out and why)."""
        ...


class Silent:
    """Reports nothing: the default of every function below the public ones."""

    def __call__(self, items: Iterable[T], *, total: int | None, description: Description, start: int = 0) -> Iterator[T]:
        yield from items

    def log(self, message: str) -> None:
        pass


class Lines:
    """Finished lines, and of a long loop one line every half minute, on stderr: the default of the public functions."""

    def __call__(self, items: Iterable[T], *, total: int | None, description: Description, start: int = 0) -> Iterator[T]:
        begun = said = time.monotonic()
        for done, item in enumerate(items, start + 1):
            yield item
            now = time.monotonic()
            if now - said >= EVERY_S:
                said = now
                left = "" if not total or done >= total else f", about {_duration((now - begun) / (done - start) * (total - done))} left"
                self.log(f"{_text(description)}: {done}{f' of {total}' if total else ''} after {_duration(now - begun)}{left}")

    def log(self, message: str) -> None:
        print(printable(message), file=sys.stderr, flush=True)


class Bars:
    """Bars with elapsed and remaining time on stderr; as `Lines` where stderr is not a terminal."""

    def __init__(self) -> None:
        from rich.console import Console  # rich costs 0.1 s; only a run that draws pays it

        self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def __call__(self, items: Iterable[T], *, total: int | None, description: Description, start: int = 0) -> Iterator[T]:
        if not self._console.is_terminal:
            yield from Lines()(items, total=total, description=description, start=start)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(_text(description), total=total, completed=start)
            for item in items:
                yield item
                bars.update(task, advance=1, description=_text(description))

    def log(self, message: str) -> None:
        self._console.print(printable(message))


@contextmanager
def working(progress: Progress, description: str) -> Iterator[None]:
    """Says every half minute that something goes on that is no loop."""
    done, begun = threading.Event(), time.monotonic()

    def say() -> None:
        while not done.wait(EVERY_S):
            progress.log(f"{description}: {_duration(time.monotonic() - begun)} so far")

    speaker = threading.Thread(target=say, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()


def _duration(seconds: float) -> str:
    """1:05 h, 2:03 min or 42 s."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"


def _text(description: Description) -> str:
    return printable(description if isinstance(description, str) else description())
