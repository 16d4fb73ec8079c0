"""Progress as an argument: library functions take a `Progress`, the command line passes one that draws bars."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from .text import printable

T = TypeVar("T")
Description = str | Callable[[], str]
"""Text, or what to ask for it after every item, where it changes while the loop runs."""


class Progress(Protocol):
    """Wraps the iterable of a long loop and reports on it."""

    def __call__(self, items: Iterable[T], *, total: int | None, description: Description, start: int = 0) -> Iterator[T]:
        """Yield every item of `items` unchanged; `start` items of `total` were done by an earlier run."""
        ...

    def log(self, message: str) -> None:
        """Show one finished line (an epoch's result, a layer left out and why)."""
        ...


class Silent:
    """Reports nothing: the default of every library function."""

    def __call__(self, items: Iterable[T], *, total: int | None, description: Description, start: int = 0) -> Iterator[T]:
        yield from items

    def log(self, message: str) -> None:
        pass


class Bars:
    """Bars with elapsed and remaining time on stderr (plain lines where stderr is not a terminal)."""

    def __init__(self) -> None:
        from rich.console import Console  # rich costs 0.1 s; only a run that draws pays it

        self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def __call__(self, items: Iterable[T], *, total: int | None, description: Description, start: int = 0) -> Iterator[T]:
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
        with RichProgress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bars:
            task = bars.add_task(_text(description), total=total, completed=start)
            for item in items:
                yield item
                bars.update(task, advance=1, description=_text(description))

    def log(self, message: str) -> None:
        self._console.print(printable(message))


def _text(description: Description) -> str:
    return printable(description if isinstance(description, str) else description())
