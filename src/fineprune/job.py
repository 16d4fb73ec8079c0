"""One checked `Job`: all settings of a compression besides the network and the data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.errors import UsageError
from fineprune.compressor.config import PruneConfig
from fineprune.compressor.reconstruct.run import ReconstructConfig
from fineprune.models.training.config import TrainConfig

from .schedules import AnySchedule, at
from .search.target import Target

FINETUNE = {"epochs": 10, "lr": 0.02, "schedule": "cosine", "weight_decay": 5e-4}
"""Fine-tuning defaults: a trained network needs a lower rate than a fresh one, and ends at zero however short it is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of one compression besides the network and the data. `finetune` and `reconstruct` None leave that out."""

    config: PruneConfig = field(default_factory=PruneConfig)
    preset: str = "taylor"
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    finetune: TrainConfig | None = field(default_factory=lambda: TrainConfig(**FINETUNE))  # type: ignore[arg-type]
    reconstruct: ReconstructConfig | None = None
    batchnorm_samples: int = 4096
    schedule: AnySchedule | None = None
    """When masks come; None: at once, before the fine-tuning."""
    target: Target | None = None
    """What the ratios of single layers are searched for; those of `config` are 0 until they are found."""
    compare_dense: bool = False
    """Fine-tune the dense network by the same settings too: what the masks cost, apart from what the training gained."""
    device: str = "auto"
    picked: tuple[str, ...] = ()
    """What was left open and is decided by the epochs that there are, in words."""

    def __post_init__(self) -> None:
        if self.schedule is not None:
            self.schedule.check(self.finetune, self.reconstruct)
            self.schedule.check_config(self.config)
            if self.target is not None and self.schedule.while_training:
                raise UsageError(
                    f"a target is searched for before the fine-tuning; leave prune_schedule {self.schedule.name!r} out, or give ratios"
                )
            try:
                at(self.config, partial(self.schedule.ratio, 1))
            except UsageError as error:
                raise UsageError(
                    f"prune_schedule {self.schedule.name!r} begins with less than is asked for: {error}; or prune at once"
                ) from error

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest and for hashes; the device is left out, it does not decide the result."""
        return {
            "preset": self.preset,
            **self.config.to_json(),
            "calibration": {"samples": self.calibration.samples, "seed": self.calibration.seed, "batch_size": self.calibration.batch_size},
            "finetune": self.finetune.identity() if self.finetune else None,
            "reconstruct": asdict(self.reconstruct) if self.reconstruct else None,
            "batchnorm_samples": self.batchnorm_samples,
            "compare_dense": self.compare_dense,
            **({} if self.schedule is None else {"prune_schedule": self.schedule.to_json()}),
            **({} if self.target is None else {"target": self.target.to_json()}),
        }


PICKED_SAMPLES = 1024
"""Training images that each round calibrates on."""
PICKED_DISTILL = 0.9


def finetune_config(**settings: Any) -> TrainConfig | None:
    """Fine-tuning settings: the defaults with those given (not None) changed; None for epochs=0. distill=0 is none."""
    given = {key: value for key, value in settings.items() if value is not None}
    if unknown := sorted(given.keys() - {one.name for one in fields(TrainConfig)}):
        raise UsageError(f"finetune has unknown {', '.join(unknown)}; it takes the settings of TrainConfig")
    if given.get("epochs") == 0:
        if given.get("qat_epochs"):
            raise UsageError(f"qat_epochs are the last ones of epochs=0, got {given['qat_epochs']!r}")
        return None
    if _none(given.get("distill")):
        del given["distill"]
    config = TrainConfig(**{**FINETUNE, **given})
    if config.schedule == "cosine" and "warmup_epochs" not in given and config.epochs > 1:
        config = replace(config, warmup_epochs=min(1.0, config.epochs / 10))
    return config


def training_settings(finetune: TrainConfig | Mapping[str, Any] | None, **short: Any) -> TrainConfig | dict[str, Any]:
    """`finetune`, or a table of its settings with those of `short` (None: left open), which none of its own may be."""
    given = {name: value for name, value in short.items() if value is not None}
    table = None if isinstance(finetune, TrainConfig) else dict(finetune or {})
    both = [name for name in given if table is None or name in table]
    if name := next((name for name in both if name != "seed"), None):
        raise UsageError(f"{name} is one of the settings that finetune gives; leave one of the two out")
    return finetune if isinstance(finetune, TrainConfig) else {**given, **(table or {})}


def _none(distill: Any) -> bool:
    share = distill.get("share") if isinstance(distill, Mapping) else distill
    return isinstance(share, int | float) and not isinstance(share, bool) and share == 0


def ratio_settings(kind: str, value: float | Mapping[str, Any] | None, **globs: str | Sequence[str] | None) -> dict[str, Any]:
    """A pruned fraction, or a mapping with settings of FFPConfig or FWPConfig, as the latter; globs: include, exclude of both kinds."""
    settings = dict(value) if isinstance(value, Mapping) else {} if value is None else {"ratio": value}
    given = {name: (layers,) if isinstance(layers, str) else layers for name, layers in globs.items() if layers is not None}
    for name in given:
        if settings.get(name):
            raise UsageError(f"{name} is given for all masks and in {kind}; leave one of the two out")
    return settings | given
