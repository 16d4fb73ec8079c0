"""What a training run reports. Epochs are counted from 1 wherever people read them."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from fineprune.common.figures import written

from ..objective import Objective


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One finished epoch; accuracies are fractions, losses mean cross-entropies in nats."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean of the per-sample losses as the epoch's steps saw them (with augmentation, label smoothing and changing weights)."""
    train_accuracy: float | None
    """None: of a metric of a whole set."""
    validation_loss: float | None
    """None without a validation split."""
    validation_accuracy: float | None
    lr: float
    """Of the epoch's last batch."""
    seconds: float
    """Wall time, validation included."""
    cpu_seconds: float = 0.0
    """Processor time of all threads."""
    validation_seconds: float = 0.0
    policy_seconds: float = 0.0
    """Choosing samples and taking in their losses: processor time."""
    rate_seconds: float = 0.0
    """Measuring what the learning rate follows within the epoch: wall time."""
    rate_cpu_seconds: float = 0.0
    """The same: processor time of all threads."""
    visits: int = 0
    """Samples trained on."""
    rate_loss: float | None = None
    """The loss that the learning rate may follow: of validation, or of test data where that was asked for."""
    part_losses: tuple[float, ...] = ()
    """Those that it followed after each part of the epoch, where it does not follow whole epochs."""


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Shares of the regular run's time, in [0,1); seconds of the policy's own work."""

    policy: str
    predicted: float
    """From the batches of every epoch (infobatch: as they turned out, for its choice depends on the losses)."""
    thesis: float | None
    """By the closed form; None where it does not apply (infobatch)."""
    measured: float | None
    """Of wall time, against the epochs of the same run that visited every sample; None where there is none."""
    measured_cpu: float | None
    """The same of processor time, which other work on the machine disturbs less."""
    overhead_s: float
    visits: int
    """Samples trained on, counted each time."""
    regular_visits: int

    def line(self) -> str:
        """One line for people."""
        measured = "not measured (no epoch visited every sample)"
        if self.measured is not None and self.measured_cpu is not None:
            measured = f"measured {self.measured:.2%} ({self.measured_cpu:.2%} of processor time)"
        thesis = "" if self.thesis is None else f" (thesis formula {self.thesis:.2%})"
        return (
            f"{self.policy}: {self.visits:,} of {self.regular_visits:,} sample visits; training time saved: predicted "
            f"{self.predicted:.2%}{thesis}, {measured}; overhead of the policy {self.overhead_s:.2f} s"
        )


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run; the model holds the weights of `best_epoch`."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    """Highest validation accuracy, the later one of equals; the last epoch without a validation split."""
    best_accuracy: float | None
    """Validation accuracy of `best_epoch`."""
    seconds: float
    """All epochs, those before an interruption too."""
    saving: Saving | None = None
    """Time that leaving samples out, or stopping early, saved; None for a full run."""
    losses: Tensor | None = field(default=None, compare=False, repr=False)
    """float32 [epochs, N] with record_losses: of each training sample in each epoch, NaN where it was left out."""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types, without `losses`."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "losses"}
        saving = asdict(self.saving) if self.saving is not None else None
        return {**values, "history": [asdict(record) for record in self.history], "saving": saving}


def epoch_line(record: EpochRecord, epochs: int, left_s: float, objective: Objective | None = None) -> str:
    """One line for people: the epoch's results and the time that the other epochs will take."""
    name, unit = ("accuracy", None) if objective is None else (objective.metric.name, objective.metric.unit)
    accuracy = record.validation_accuracy
    validation = "no validation images" if accuracy is None else f"validation {name} {written(accuracy, unit)}"
    train = "" if record.train_accuracy is None else f", train {name} {written(record.train_accuracy, unit)}"
    left = f", {_duration(left_s)} left" if record.epoch < epochs else ""
    return (
        f"epoch {record.epoch}/{epochs}: train loss {record.train_loss:.4f}{train}, "
        f"{validation}, lr {record.lr:.3g}, {_duration(record.seconds)}{left}"
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
