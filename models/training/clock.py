"""Seconds of the epoch that runs, summed over interruptions: wall, processor, and the parts that pruning does not shorten."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields


@dataclass
class Clock:
    """`start` it before work and `tick` while it goes on; the fields are what a saved state holds."""

    wall: float = 0.0
    cpu: float = 0.0
    """Of all threads of the process: on a machine with other work it says more than wall time, on an accelerator less."""
    validation: float = 0.0
    policy: float = 0.0
    rate: float = 0.0

    def start(self) -> None:
        """Begin to count here."""
        self._last = time.monotonic(), time.process_time()

    def tick(self) -> None:
        """Add the time since `start` or the last tick."""
        wall, cpu = self._last
        self.start()
        self.wall += self._last[0] - wall
        self.cpu += self._last[1] - cpu

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Count the block's wall time as validation, too."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.validation += time.monotonic() - started

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Count the block's processor time, as it is many short pieces that other work would interrupt, as the policy's, too."""
        started = time.thread_time()
        try:
            yield
        finally:
            self.policy += time.thread_time() - started

    @contextmanager
    def following(self) -> Iterator[None]:
        """Count the block's processor time as the automatic learning rate's, too."""
        started = time.process_time()
        try:
            yield
        finally:
            self.rate += time.process_time() - started

    def to_json(self) -> dict[str, float]:
        """The sums."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
