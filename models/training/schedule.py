"""The learning rate as a function of the position in the run, plus the little that depends on what was observed.

rate(e, k) = lr * warmup(t) * drop(t),  t = (e*n + k) / n in epochs, for batch k of n in epoch e (all 0-based)
warmup = min(1, (t + 1/n) / warmup_epochs)
multistep  gamma^(milestones <= e)      cosine  from lr to min_lr over the epochs after the warm-up
plateau    gamma^drops, one drop after more than patience_epochs epochs without a lower validation loss
auto       factor^drops, see auto_lr.py
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .auto_lr import AutoRate
from .config import TrainConfig


@dataclass
class LearningRate:
    """Call `at` for each batch and `observe` after each epoch, or part of one (`part_ends`); `to_json` holds what a resumed run needs."""

    config: TrainConfig
    best_loss: float = math.inf
    bad_epochs: int = 0
    drops: int = 0
    auto: AutoRate | None = None

    def __post_init__(self) -> None:
        if self.config.schedule == "auto" and self.auto is None:
            rule = self.config.rate_rule
            self.auto = AutoRate(rule, self.config.lr, rule.threshold)

    @classmethod
    def from_json(cls, config: TrainConfig, state: Mapping[str, Any]) -> "LearningRate":
        """The inverse of `to_json`."""
        auto = AutoRate(config.rate_rule, **state["auto"]) if state["auto"] else None
        return cls(config, **{**state, "auto": auto})

    @property
    def finished(self) -> bool:
        """Whether the schedule has nothing left to try (only auto)."""
        return self.auto is not None and self.auto.finished

    def at(self, epoch: int, batch: int, batches: int) -> float:
        """Rate of `batch` (0-based, of `batches`) in `epoch` (0-based)."""
        config = self.config
        position = epoch + batch / batches
        rate = config.lr * self._drop(epoch) if config.schedule != "cosine" else self._cosine(position)
        if config.warmup_epochs:
            rate *= min(1.0, (position + 1 / batches) / config.warmup_epochs)
        return rate

    @property
    def parts(self) -> int:
        """Losses that are wanted of an epoch: one after the whole of it, or several, after parts of it (`part_ends`)."""
        return 1 if self.auto is None else self.auto.config.parts or 1

    def part_ends(self, epoch: int, batch: int, batches: int) -> bool:
        """Whether a part of `epoch` (0-based) ends with step `batch` of `batches`; none does in the warm-up, whose losses tell nothing."""
        if self.parts == 1 or epoch + batch / batches <= self.config.warmup_epochs:
            return False
        return self.parts * batch // batches > self.parts * (batch - 1) // batches

    def observe(self, validation_loss: float) -> None:
        """Take note of a validation loss (plateau and auto use it)."""
        if self.auto is not None:
            self.auto.observe(validation_loss)
            return
        if validation_loss < self.best_loss:
            self.best_loss, self.bad_epochs = validation_loss, 0
            return
        self.bad_epochs += 1
        if self.config.schedule == "plateau" and self.bad_epochs > self.config.patience_epochs:
            self.drops, self.bad_epochs = self.drops + 1, 0

    def to_json(self) -> dict[str, Any]:
        """What was observed so far, without the config."""
        state = {key: value for key, value in asdict(self).items() if key != "config"}
        return {**state, "auto": self.auto.to_json() if self.auto is not None else None}

    def _drop(self, epoch: int) -> float:
        config = self.config
        if config.schedule == "multistep":
            return config.gamma ** sum(milestone <= epoch for milestone in config.milestones)
        if self.auto is not None:
            return config.auto_lr.factor**self.auto.drops
        if config.schedule == "plateau":
            return max(config.gamma**self.drops, config.min_lr / config.lr)
        return 1.0

    def _cosine(self, position: float) -> float:
        config = self.config
        done = max(0.0, position - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
        return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2
