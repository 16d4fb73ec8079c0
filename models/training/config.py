"""What a training run is asked to do. Every value is checked before any work starts."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from fineprune.common.errors import UsageError
from fineprune.common.seeds import check_seed

from .auto_lr import AutoRateConfig
from .distillation import DistillConfig
from .distributed.config import AsyncConfig
from .sampling.config import PolicyConfig

OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "multistep", "cosine", "plateau", "auto"]
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]

_WITHOUT_EFFECT = ("checkpoint_every_s", "workers")
"""Settings that change how fast a run goes, never its result: a run may be resumed with other values."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training; UsageError names the first one that is out of range."""

    epochs: int = 20
    batch_size: int = 128
    optimizer: OptimizerName = "sgd"
    lr: float = 0.1
    """Peak learning rate: what the schedule and the warm-up scale."""
    momentum: float = 0.9
    """SGD only."""
    nesterov: bool = False
    """SGD only."""
    weight_decay: float = 1e-4
    schedule: ScheduleName = "cosine"
    milestones: tuple[int, ...] = ()
    """multistep: epochs (finished ones) after which the rate is multiplied by gamma."""
    gamma: float = 0.1
    """multistep, plateau: factor of each drop."""
    patience_epochs: int = 5
    """plateau: epochs without a lower validation loss before a drop."""
    min_lr: float = 0.0
    """cosine: rate at the end; plateau: no drop goes below."""
    auto_lr: AutoRateConfig = field(default_factory=AutoRateConfig)
    """auto: its rule; a mapping will do."""
    warmup_epochs: float = 0.0
    """Linear rise to the schedule's rate, batch by batch."""
    label_smoothing: float = 0.0
    max_grad_norm: float | None = None
    """Clip the gradient's L2 norm over all parameters."""
    precision: PrecisionName = "auto"
    """auto: bfloat16 autocast on CUDA that has it, float32 elsewhere."""
    channels_last: bool = True
    """Train in NHWC memory: a CIFAR ResNet-20 step of 128 images took 20-40 % less time on a CPU with AVX-512."""
    augment: bool = True
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Which samples each epoch visits; a name or a mapping with `name` will do."""
    distill: DistillConfig | None = None
    """Learn from a teacher, too, which `train` is given; a share or a mapping will do."""
    qat_epochs: int = 0
    """So many of the last epochs compute on the grids of int8 (quantised.py): quantisation-aware training. 0: none."""
    asynchronous: AsyncConfig | None = None
    """Train with a parameter server and workers; a mapping will do. None: the plain trainer."""
    record_losses: bool = False
    """Keep every sample's loss in every epoch (2 bytes each), for a report on bad data."""
    seed: int = 0
    checkpoint_every_s: float = 60.0
    """State is saved at each epoch's end and this often in between (seconds; 0 means after every batch)."""
    workers: int = 0
    """Threads that read images ahead where they do not fit in memory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", PolicyConfig.of(self.policy))
        object.__setattr__(self, "distill", None if self.distill is None else DistillConfig.of(self.distill))
        object.__setattr__(self, "asynchronous", None if self.asynchronous is None else AsyncConfig.of(self.asynchronous))
        object.__setattr__(self, "auto_lr", AutoRateConfig.of(self.auto_lr))
        for name, choices in (("optimizer", OptimizerName), ("schedule", ScheduleName), ("precision", PrecisionName)):
            if getattr(self, name) not in get_args(choices):
                raise UsageError(f"{name} is one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience_epochs", 0), ("qat_epochs", 0), ("workers", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name} is a whole number of at least {least}, got {value!r}")
        check_seed(self.seed)
        for name in ("nesterov", "augment", "channels_last", "record_losses"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is true or false, got {getattr(self, name)!r}")
        self._check_numbers()
        self._check_combinations()

    def _check_numbers(self) -> None:
        limits = {
            "lr": lambda v: v > 0,
            "momentum": lambda v: 0 <= v < 1,
            "weight_decay": lambda v: v >= 0,
            "gamma": lambda v: 0 < v < 1,
            "min_lr": lambda v: 0 <= v <= self.lr,
            "warmup_epochs": lambda v: 0 <= v < self.epochs,
            "label_smoothing": lambda v: 0 <= v < 1,
            "checkpoint_every_s": lambda v: v >= 0,
            "max_grad_norm": lambda v: v is None or v > 0,
        }
        ranges = {
            "lr": "above 0",
            "momentum": "in [0,1)",
            "weight_decay": "at least 0",
            "gamma": "in (0,1)",
            "min_lr": f"in [0, lr={self.lr}]",
            "warmup_epochs": f"at least 0 and below epochs={self.epochs}",
            "label_smoothing": "in [0,1)",
            "checkpoint_every_s": "at least 0",
            "max_grad_norm": "above 0, or none",
        }
        for name, fits in limits.items():
            value = getattr(self, name)
            number = value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
            if not number or (value is None and name != "max_grad_norm") or not fits(value):
                raise UsageError(f"{name} is {ranges[name]}, got {value!r}")

    def _check_combinations(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        increasing = all(isinstance(m, int) and m >= 1 for m in self.milestones) and list(self.milestones) == sorted(set(self.milestones))
        if self.schedule == "multistep" and not (self.milestones and increasing):
            raise UsageError(f"the multistep schedule needs increasing milestones (epochs such as 10,15), got {list(self.milestones)}")
        if self.schedule != "multistep" and self.milestones:
            raise UsageError(f"milestones belong to the multistep schedule, not to {self.schedule}; leave one of the two out")
        if self.schedule != "auto" and self.auto_lr != AutoRateConfig():
            raise UsageError(f"auto_lr belongs to the auto schedule, not to {self.schedule}; leave one of the two out")
        if self.asynchronous is not None and (self.auto_lr.parts or 1) > 1:
            raise UsageError("a parameter server measures the loss after whole epochs; leave auto_lr's parts out")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise UsageError("nesterov needs the sgd optimizer and a momentum above 0")
        if self.asynchronous is not None and (self.policy != PolicyConfig() or self.record_losses):
            raise UsageError("asynchronous training visits every sample and records no losses; leave policy and record_losses out")
        if self.qat_epochs > self.epochs:
            raise UsageError(f"qat_epochs are the last ones of epochs={self.epochs}, got {self.qat_epochs}")
        if self.asynchronous is not None and self.qat_epochs:
            raise UsageError("a parameter server and its workers compute in float32; leave qat_epochs out, or take the plain trainer")

    @property
    def rate_rule(self) -> AutoRateConfig:
        """auto_lr as this run resolves it."""
        return self.auto_lr.for_epochs(self.epochs)

    def to_json(self) -> dict[str, Any]:
        """Every setting as JSON types."""
        distill = None if self.distill is None else self.distill.to_json()
        own = {"policy": self.policy.to_json(), "auto_lr": self.auto_lr.to_json(), "distill": distill}
        return {**asdict(self), "milestones": list(self.milestones), **own}

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result: a resumed run must have the same."""
        apart = (*_WITHOUT_EFFECT, "asynchronous", *(name for name in ("distill", "qat_epochs") if not getattr(self, name)))
        settings = {key: value for key, value in self.to_json().items() if key not in apart}
        if self.schedule == "auto":
            settings["auto_lr"] = self.rate_rule.to_json()
        own = {} if self.asynchronous is None else self.asynchronous.identity()
        return settings | {f"asynchronous.{key}": value for key, value in own.items()}
