"""Ctrl-C and SIGTERM wait for the end of the step that runs: a half-applied update must never be saved."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interrupts:
    """`requested` turns true at the first signal; a second one raises KeyboardInterrupt on the spot."""

    requested: bool = False
    grace_s: float = 0.0
    """Signals within so many seconds of the first one are its echo."""
    _since: float = 0.0
    _at_once: bool = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        now = time.monotonic()
        again = self.requested and now - self._since >= self.grace_s
        if not self.requested:
            self.requested, self._since = True, now
        if again or self._at_once:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work that changes nothing (validation): the first signal, or one that waits, raises KeyboardInterrupt."""
        self._at_once = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False


@contextmanager
def deferred_interrupts(grace_s: float = 0.0) -> Iterator[Interrupts]:
    """Catch SIGINT and SIGTERM inside the block. Only the main thread gets signals; elsewhere nothing is ever requested."""
    interrupts = Interrupts(grace_s=grace_s)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    previous = {number: signal.signal(number, interrupts.receive) for number in _SIGNALS}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
