"""The automatic learning rate (Algorithm 3 of the source): drop the rate when the loss no longer changes by more than its noise.

L_t: mean loss on a held-out split after epoch t; with `parts`, after each of so many parts of an epoch, on a part of the split
std_i, std_2i: population standard deviations of the last i and 2i losses
diff = std_i - std_2i                                             (needs 2i losses since the last drop)
default   |diff| < h                        literal   diff < h
bottom    the diff before was a local minimum, and below h
drop:     lr *= c from the next step;  h = max(h - lr^2, h_min)  (literal: h - c^2);  the losses are forgotten
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, get_args

from fineprune.common.errors import UsageError

Rule = Literal["default", "literal", "bottom"]

_SOURCE_EPOCHS, _SOURCE_INTERVAL = 160, 10
_LEAST_INTERVAL = 3
_LEAST_IMAGES = 256
"""Of fewer images the loss says too little."""


@dataclass(frozen=True, kw_only=True)
class AutoRateConfig:
    """Settings of the rule; UsageError names the first one that is out of range."""

    rule: Rule = "default"
    interval: int | None = None
    """i, in losses. None: those of 10 epochs, below 160 epochs those of a 16th of the run, at least 3 (`for_epochs`)."""
    parts: int | None = None
    """Losses that an epoch gives; None: 1."""
    threshold: float = 0.01
    """h, in nats."""
    least_threshold: float = 0.001
    """h_min."""
    factor: float = 0.1
    """c."""
    max_drops: int | None = 2
    """None: no limit."""
    stop_early: bool = True
    """The rule's next firing after max_drops drops ends the run: nothing is left to try."""
    split: Literal["validation", "test"] = "validation"
    """Whose loss is followed. The source follows test data, which then no longer tell the accuracy on unseen ones."""

    def __post_init__(self) -> None:
        for name, choices in (("rule", get_args(Rule)), ("split", ("validation", "test"))):
            if getattr(self, name) not in choices:
                raise UsageError(f"auto_lr: {name} is one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, least in (("interval", 2), ("parts", 1), ("max_drops", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UsageError(f"auto_lr: {name} is a whole number of at least {least}, or none, got {value!r}")
        if not isinstance(self.stop_early, bool):
            raise UsageError(f"auto_lr: stop_early is true or false, got {self.stop_early!r}")
        limits = {
            "factor": (lambda v: 0 < v < 1, "in (0,1)"),
            "threshold": (lambda v: 0 < v < float("inf"), "above 0"),
            "least_threshold": (lambda v: 0 <= v <= self.threshold, f"in [0, threshold={self.threshold}]"),
        }
        for name, (fits, text) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
                raise UsageError(f"auto_lr: {name} is {text}, got {value!r}")

    @classmethod
    def of(cls, value: "AutoRateConfig | Mapping[str, Any]") -> "AutoRateConfig":
        """From a mapping (as in a recipe), or itself."""
        if isinstance(value, AutoRateConfig):
            return value
        known = [f.name for f in fields(cls)]
        if not isinstance(value, Mapping) or set(value) - set(known):
            raise UsageError(f"auto_lr is a table of {', '.join(known)}, got {value!r}")
        return cls(**value)

    def for_epochs(self, epochs: int) -> "AutoRateConfig":
        """With interval and parts, where they are not given: i losses cover what the source's 10 epochs are of its 160, but at least 3."""
        span = min(_SOURCE_INTERVAL, epochs * _SOURCE_INTERVAL / _SOURCE_EPOCHS)
        parts = self.parts or 1
        interval = max(_LEAST_INTERVAL, round(parts * span)) if self.interval is None else self.interval
        return replace(self, interval=interval, parts=parts)

    def images(self, held_out: int) -> int:
        """Of how many of the held-out images each loss is, so that those of an epoch take about one validation. `for_epochs` is done."""
        return min(held_out, max(-(-held_out // (self.parts or 1)), _LEAST_IMAGES))

    def to_json(self) -> dict[str, Any]:
        """Every setting; without `parts` where it is not given, as files of before there was a choice."""
        return {key: value for key, value in asdict(self).items() if key != "parts" or value is not None}


class Point(NamedTuple):
    """What one observation gave; std and diff are None until there are 2i losses."""

    loss: float
    std_i: float | None
    std_2i: float | None
    diff: float | None
    threshold: float
    """h at the observation."""
    fired: bool


@dataclass
class AutoRate:
    """Call `observe` with each loss; `drops` and `finished` say what became of it. The fields are the whole state."""

    config: AutoRateConfig
    lr: float
    """Current rate, for h - lr^2."""
    threshold: float
    drops: int = 0
    finished: bool = False
    losses: list[float] = field(default_factory=list)
    """Since the last drop, at most 2i."""
    diffs: list[float] = field(default_factory=list)
    """Since the last drop, at most 3."""

    def observe(self, loss: float) -> Point:
        """Take note of a loss. The config's interval is resolved (`for_epochs`)."""
        i = self.config.interval or _SOURCE_INTERVAL
        self.losses = [*self.losses, loss][-2 * i :]
        if len(self.losses) < 2 * i:
            return Point(loss, None, None, None, self.threshold, False)
        std_i, std_2i = statistics.pstdev(self.losses[-i:]), statistics.pstdev(self.losses)
        self.diffs = [*self.diffs, std_i - std_2i][-3:]
        point = Point(loss, std_i, std_2i, self.diffs[-1], self.threshold, fires(self.config.rule, self.diffs, self.threshold))
        if point.fired:
            self._drop()
        return point

    def to_json(self) -> dict[str, Any]:
        """The state without the config."""
        return {key: value for key, value in asdict(self).items() if key != "config"}

    def _drop(self) -> None:
        config = self.config
        if config.max_drops is not None and self.drops >= config.max_drops:
            self.finished = config.stop_early
            return
        self.drops += 1
        self.lr *= config.factor
        if config.rule == "literal":
            self.threshold -= config.factor**2
        else:
            self.threshold = max(self.threshold - self.lr**2, config.least_threshold)
        self.losses, self.diffs = [], []


def fires(rule: Rule, diffs: Sequence[float], threshold: float) -> bool:
    """Whether the rate drops, given the diffs since the last drop (the newest last)."""
    if rule == "default":
        return abs(diffs[-1]) < threshold
    if rule == "literal":
        return diffs[-1] < threshold
    return len(diffs) >= 3 and diffs[-3] > diffs[-2] < diffs[-1] and diffs[-2] < threshold


def replay(losses: Sequence[float], config: AutoRateConfig, lr: float) -> list[Point]:
    """The points of a run from its losses: the rule draws nothing at random."""
    rate = AutoRate(config, lr, config.threshold)
    return [rate.observe(loss) for loss in losses]
