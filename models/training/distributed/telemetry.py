"""What a server notes while it serves: staleness, how well it predicts, and what each kind of request costs."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Arrival(NamedTuple):
    """One state message, with what had been predicted for it; None where nothing had."""

    worker: int
    loss: float
    predicted_loss: float | None
    steps: int
    """States of other workers since this worker's last one."""
    predicted_steps: int | None


@dataclass
class Telemetry:
    """Sums over a run; `trace` keeps every arrival where it is a list."""

    staleness: Counter[int] = field(default_factory=Counter)
    """Updates between a pull and the application of its gradient -> how many gradients."""
    errors: dict[str, list[float]] = field(default_factory=dict)
    """loss, steps: sums of the absolute errors of the prediction, of the last value in its place, and their number."""
    forecasts: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Sums of k and of l_delay / l_m over the answers of LC-ASGD, and their number."""
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    trace: list[Arrival] | None = None

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the block's seconds and calls as `what`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started
            self.calls[what] = self.calls.get(what, 0) + 1

    def error(self, what: str, predicted: float, last: float, actual: float) -> None:
        """Note a prediction that came due, with the stand-in `last`."""
        sums = self.errors.setdefault(what, [0.0, 0.0, 0.0])
        for i, value in enumerate((abs(predicted - actual), abs(last - actual), 1.0)):
            sums[i] += value

    def forecast(self, steps: int, ratio: float) -> None:
        """Note an answer: k and l_delay / l_m."""
        for i, value in enumerate((steps, ratio, 1)):
            self.forecasts[i] += value

    def mean_staleness(self) -> float:
        """Mean over the gradients applied so far; 0 where there are none."""
        return sum(k * n for k, n in self.staleness.items()) / max(1, self.staleness.total())

    def to_json(self) -> dict[str, Any]:
        """Means and counts as JSON types."""
        errors = {
            what: {"predictor": sums[0] / sums[2], "last_value": sums[1] / sums[2], "count": int(sums[2])}
            for what, sums in self.errors.items()
        }
        return {
            "mean_staleness": self.mean_staleness(),
            "staleness": {str(k): n for k, n in sorted(self.staleness.items())},
            "mean_absolute_errors": errors,
            "mean_forecast_steps": self.forecasts[0] / max(1, self.forecasts[2]),
            "mean_forecast_ratio": self.forecasts[1] / max(1, self.forecasts[2]),
            "server_ms_per_call": {what: 1e3 * s / self.calls[what] for what, s in self.seconds.items()},
            "server_calls": dict(self.calls),
        }

    def state_dict(self) -> dict[str, Any]:
        """All sums; the trace is not saved."""
        rest = {"errors": {k: list(v) for k, v in self.errors.items()}, "seconds": dict(self.seconds), "calls": dict(self.calls)}
        return {"staleness": dict(self.staleness), "forecasts": list(self.forecasts), **rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.staleness, self.forecasts = Counter(state["staleness"]), list(state["forecasts"])
        self.errors, self.seconds, self.calls = dict(state["errors"]), dict(state["seconds"]), dict(state["calls"])
