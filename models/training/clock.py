"""Seconds of the epoch that runs, summed over interruptions: wall, processor, and the parts that pruning does not shorten."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
    rate_cpu: float = 0.0

    def start(self) -> None:
        """Begin to count here."""
        self._last = time.monotonic(), time.process_time()

    def tick(self) -> None:
        """Add the time since `start` or the last tick."""
        wall, cpu = self._last
        self.start()
        self.wall += self._last[0] - wall
        self.cpu += self._last[1] - cpu

    def validating(self) -> AbstractContextManager[None]:
        """Count the block's wall time as validation, too."""
        return self._counted(validation=time.monotonic)

    def choosing(self) -> AbstractContextManager[None]:
        """Count the block's processor time, as it is many short pieces that other work would interrupt, as the policy's, too."""
        return self._counted(policy=time.thread_time)

    def following(self) -> AbstractContextManager[None]:
        """Count the block's wall and processor time as the automatic learning rate's, too."""
        return self._counted(rate=time.monotonic, rate_cpu=time.process_time)

    @contextmanager
    def _counted(self, **clocks: Callable[[], float]) -> Iterator[None]:
        """Add what each clock says of the block to the field of its name."""
        started = {name: clock() for name, clock in clocks.items()}
        try:
            yield
        finally:
            for name, clock in clocks.items():
                setattr(self, name, getattr(self, name) + clock() - started[name])

    def to_json(self) -> dict[str, float]:
        """The sums."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
