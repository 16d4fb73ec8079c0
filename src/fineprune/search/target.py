"""What a user asks of the search: a latency, multiply-adds, a drop in accuracy, on which machine."""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fineprune.common.errors import UsageError
from fineprune.compressor.search.levels import LEVELS, Level, levels_of

_LATENCY = re.compile(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(us|ms|s|x)\s*")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target, latency or multiply-adds, a largest drop beside it or alone, on one machine; UsageError for values that make no sense.

    Latencies are of the exported file in the engine, on `threads` threads for batches of `batch`, in float32 or in int8.
    """

    latency: str | None = None
    """A time such as 2.5ms, or 0.4x: that part of the time of the dense network in ONNX Runtime, in float32."""
    macs: float | None = None
    """The fraction of the convolutions' multiply-adds that may stay."""
    max_drop: float | None = None
    """Points of accuracy, or in the unit of the user's metric, that may be lost on validation samples."""
    int8: bool = False
    threads: int = 1
    batch: int = 1
    times: str | None = None
    """A file of `fineprune profile`; None: this machine is measured."""
    levels: tuple[Level, ...] = LEVELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", levels_of(self.levels))
        if self.latency is not None and self.macs is not None:
            raise UsageError("a target is a latency or multiply-adds: give target_latency or target_macs, not both")
        if self.latency is not None:
            _parsed(self.latency)
        for name, value, fits, text in (
            ("target_macs", self.macs, lambda v: 0 < v < 1, "the fraction of the multiply-adds that may stay, in (0, 1)"),
            ("max_drop", self.max_drop, lambda v: v >= 0, "points that may be lost, at least 0"),
        ):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and not (number and fits(value)):
                raise UsageError(f"{name} is {text}, got {value!r}")
        for name in ("threads", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} is a whole number of at least 1, got {value!r}")
        if not isinstance(self.int8, bool):
            raise UsageError(f"int8 is true or false, got {self.int8!r}")
        if self.times is not None and self.macs is not None:
            raise UsageError("times are for a latency; target_macs needs none")
        if self.times is not None and not Path(self.times).is_file():
            raise UsageError(
                f"there is no file {self.times}; make it on the machine that is meant, with fineprune profile --output {self.times}"
            )

    def seconds(self, dense: float) -> float | None:
        """The latency that is asked for, where the dense network takes `dense` seconds in ONNX Runtime; None where none is."""
        if self.latency is None:
            return None
        value, unit = _parsed(self.latency)
        return value * (dense if unit == "x" else _UNITS[unit])

    @property
    def text(self) -> str:
        """What is asked for, in words."""
        words = [self.latency] if self.latency is not None else []
        words += [f"{self.macs:.0%} of the multiply-adds"] if self.macs is not None else []
        words += [f"at most {self.max_drop:g} points lost"] if self.max_drop is not None else []
        return ", ".join(words)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "levels": [level.to_json() for level in self.levels]}


def target_of(
    target_latency: str | None = None, target_macs: float | None = None, max_drop: float | None = None, **settings: Any
) -> Target | None:
    """From arguments of `compress`; settings: int8, threads, batch, times, levels, which are about a target. None where all are None."""
    given = {key: value for key, value in settings.items() if value is not None}
    if (target_latency, target_macs, max_drop) == (None, None, None):
        if given:
            raise UsageError(f"{next(iter(given))} belongs to a target; give target_latency, target_macs or max_drop, too")
        return None
    if "times" in given:
        given["times"] = str(given["times"])
    return Target(latency=target_latency, macs=target_macs, max_drop=max_drop, **given)


def _parsed(text: Any) -> tuple[float, str]:
    match = _LATENCY.fullmatch(text) if isinstance(text, str) else None
    try:
        value = float(match[1]) if match else 0.0
    except ValueError:
        value = 0.0
    if match is None or not 0 < value < math.inf:
        raise UsageError(f"target_latency is a time such as 2.5ms, or a part of the dense network's such as 0.4x, got {text!r:.40}")
    return value, match[2]
