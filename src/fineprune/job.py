"""What a compression is asked to do: settings from Python, the command line or a recipe become one checked `Job`.

Where no preset is named, the epochs of fine-tuning decide what else is left open (docs/results.md has the tables):

    epochs      weights ranked by   masks come     kept weights refitted   taught by the dense network
    0           obc                 in 4 rounds    yes
    1 or more   obc                 in 4 rounds    yes                     0.9 of the loss

The preset's name is `obs`: blocks, and weights that go together, are ranked by that. Where weights are not refitted (masks that come while
the network trains, `reconstruct` off), it is `taylor`, and nothing else is picked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.errors import UsageError
from fineprune.compressor.config import PruneConfig, prune_config
from fineprune.compressor.reconstruct.run import ReconstructConfig, reconstruct_config
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.distillation import DistillConfig

from .schedules import CubicSchedule, Rounds, at, schedule_of
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
    schedule: Rounds | CubicSchedule | None = None
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
            if self.target is not None and self.schedule.while_training:
                raise UsageError("a target is searched for before the fine-tuning; leave prune_schedule 'cubic' out, or give ratios")
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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user says of a compression; what is None is left open."""

    preset: str | None = None
    prune: float | None = None
    """The ratio of multiply-adds that `prune_split` divides between blocks and weights."""
    prune_split: str = "preset"
    ffp: Mapping[str, Any] = field(default_factory=dict)
    fwp: Mapping[str, Any] = field(default_factory=dict)
    """Fields of FFPConfig and of FWPConfig."""
    prune_schedule: str | Mapping[str, Any] | None = None
    reconstruct: bool | Mapping[str, Any] | None = None
    finetune: TrainConfig | Mapping[str, Any] = field(default_factory=dict)
    """All settings of the fine-tuning, or those that differ from the defaults."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    measured: bool = False
    """Statistics are at hand, for masks that come at once."""
    target: Target | None = None
    """What the ratios of single layers are searched for, in the place of `prune` and of ratios."""

    @property
    def named(self) -> str:
        """The preset that is given, or the one to pick: `obs` counts on a refit, without which it is `taylor`."""
        return self.preset or ("obs" if self._refits else "taylor")

    @property
    def config(self) -> PruneConfig:
        """What is pruned, and how it is ranked."""
        if self.target is None:
            return prune_config(self.named, ratio=self.prune, split=self.prune_split, ffp=self.ffp, fwp=self.fwp)
        given = self.prune is not None or any(part.get(name) for part in (self.ffp, self.fwp) for name in ("ratio", "per_layer"))
        if given or self.prune_split != "preset":
            raise UsageError(f"a target ({self.target.text}) finds the ratios of all layers; leave prune, prune_split and ratios out")
        unit = self.fwp.get("unit") or ("quad" if self.target.int8 else None)
        return prune_config(self.named, ffp=self.ffp, fwp={**self.fwp, "unit": unit})

    def job(self, **others: Any) -> Job:
        """The job; others: fields of Job that need no choice. UsageError for settings that cannot be."""
        training = self.finetune if isinstance(self.finetune, TrainConfig) else finetune_config(**self.finetune)
        settings: dict[str, Any] = {
            "calibration": self.calibration,
            "finetune": training,
            "reconstruct": reconstruct_config(self.reconstruct, default=training is None and self.preset is not None),
            "schedule": schedule_of(self.prune_schedule),
        }
        if self.preset is None:
            settings |= self._picked(training)
        if self.target is not None and self.measured:
            raise UsageError("statistics belong to ratios that are given; a target calibrates by itself")
        settings["target"] = self.target
        return Job(config=self.config, preset=self.named, **settings, **others)

    @property
    def _refits(self) -> bool:
        """Whether kept weights can be refitted before any training."""
        schedule = schedule_of(self.prune_schedule)
        return self.reconstruct is not False and (schedule is None or not schedule.while_training)

    def _picked(self, training: TrainConfig | None) -> dict[str, Any]:
        """What is left open, decided by the epochs that there are."""
        words, picked = [f"preset {self.named}"], dict[str, Any]()
        if not self._refits:
            return {"picked": tuple(words)}
        if self.reconstruct is None:
            picked["reconstruct"] = ReconstructConfig()
            words.append("kept weights refitted")
        ranked_otherwise = any(part.get(name) is not None for part in (self.ffp, self.fwp) for name in _RANKING)
        if self.prune_schedule is None and not ranked_otherwise and not self.measured:
            picked["schedule"] = Rounds()
            words.append(f"in {Rounds().rounds} rounds")
        if training is not None and not isinstance(self.finetune, TrainConfig) and self.finetune.get("distill") is None:
            picked["finetune"] = replace(training, distill=DistillConfig(share=PICKED_DISTILL))
            words.append(f"{PICKED_DISTILL:g} of the loss from the dense network")
        if self.calibration.samples is None and not self.measured:
            picked["calibration"] = replace(self.calibration, samples=PICKED_SAMPLES)
            words.append(f"calibrated on {PICKED_SAMPLES} images at most")
        return {**picked, "picked": tuple(words)}


_RANKING = ("criterion", "scope", "share", "propagate")
"""Settings of blocks and of weights that decide how they are ranked; with others than picked, masks come at once: rounds were not tried."""


def finetune_config(**settings: Any) -> TrainConfig | None:
    """Fine-tuning settings: the defaults with those given (not None) changed; None for epochs=0. distill=0 is none."""
    given = {key: value for key, value in settings.items() if value is not None}
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


def training_settings(finetune: TrainConfig | None, *, seed: int, **short: Any) -> TrainConfig | dict[str, Any]:
    """`finetune`, or the settings `short` (None: left open). UsageError where some are given beside `finetune`, which has all of them."""
    given = [name for name, value in short.items() if value is not None]
    if finetune is not None and given:
        raise UsageError(f"{given[0]} is one of the settings that finetune gives: TrainConfig({given[0]}=...); leave one of the two out")
    return finetune or {**short, "seed": seed}


def _none(distill: Any) -> bool:
    share = distill.get("share") if isinstance(distill, Mapping) else distill
    return isinstance(share, int | float) and not isinstance(share, bool) and share == 0


def ratio_settings(kind: str, value: float | Mapping[str, Any], **globs: str | Sequence[str] | None) -> dict[str, Any]:
    """A pruned fraction, or a mapping with settings of FFPConfig or FWPConfig, as the latter; globs: include, exclude of both kinds."""
    settings = dict(value) if isinstance(value, Mapping) else {"ratio": value}
    given = {name: (layers,) if isinstance(layers, str) else layers for name, layers in globs.items() if layers is not None}
    for name in given:
        if settings.get(name):
            raise UsageError(f"{name} is given for all masks and in {kind}; leave one of the two out")
    return settings | given
