"""What a user says of a compression, from Python, the command line or a recipe: one form, that of a recipe's [compress] and [finetune].

Where no preset is named, the epochs of fine-tuning decide what else is left open (docs/results.md has the tables):

    epochs      weights ranked by   masks come     kept weights refitted   taught by the dense network
    0           obc                 in 4 rounds    yes
    1 or more   obc                 in 4 rounds    yes                     0.9 of the loss

The preset's name is `obs`: blocks, and weights that go together, are ranked by that. Where weights are not refitted (masks that come while
the network trains, `reconstruct` off), it is `taylor`, and nothing else is picked.

A method with its rate (`method`, `rate`) drops weights or filters as its source does, and whatever is asked for beside it, such as the
ratio of blocks (`ffp`), comes on top. It is the same as the table fwp = { criterion, ratio } with the settings and the schedule of that
source (`Criterion.published`, `.schedule`), and as for a preset that is named, nothing is picked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.errors import UsageError
from fineprune.common.files import as_stored
from fineprune.compressor.config import PruneConfig, prune_config
from fineprune.compressor.criteria import criteria, criterion
from fineprune.compressor.reconstruct.run import ReconstructConfig, reconstruct_config
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.distillation import DistillConfig

from .job import PICKED_DISTILL, PICKED_SAMPLES, Job, finetune_config, ratio_settings
from .schedules import Rounds, Schedule, schedule_of
from .search.target import Target, target_of

_CHOICES = ("preset", "method", "rate", "prune", "prune_split", "prune_schedule", "reconstruct")
_CALIBRATION = {"samples": "samples", "calibration_batch_size": "batch_size", "seed": "seed"}
"""Keys of [compress], and the fields of CalibrationConfig that they set."""
_TARGET = {"target_latency": "latency", "target_macs": "macs"} | {
    name: name for name in ("max_drop", "int8", "threads", "batch", "times", "levels")
}
"""Keys of [compress], and the fields of Target that they set."""
TARGET = tuple(_TARGET)
COMPRESS = (*_CHOICES, "ffp", "fwp", "include", "exclude", *TARGET, *_CALIBRATION)
"""Keys of [compress], which `compress` in Python takes by the same names."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user says of a compression; what is None, or missing in a mapping, is left open."""

    preset: str | None = None
    method: str | None = None
    """That drops weights, as its source has it, and the pruned fraction, as it says it."""
    rate: float | None = None
    prune: float | None = None
    """The ratio of multiply-adds that `prune_split` divides between blocks and weights."""
    prune_split: str | None = None
    ffp: Mapping[str, Any] = field(default_factory=dict)
    fwp: Mapping[str, Any] = field(default_factory=dict)
    """Fields of FFPConfig and of FWPConfig."""
    prune_schedule: str | Mapping[str, Any] | None = None
    reconstruct: bool | Mapping[str, Any] | None = None
    finetune: TrainConfig | Mapping[str, Any] = field(default_factory=dict)
    """All settings of the fine-tuning, or those that differ from the defaults."""
    calibration: CalibrationConfig | Mapping[str, Any] = field(default_factory=dict)
    measured: bool = False
    """Statistics are at hand, for masks that come at once."""
    target: Target | None = None
    """What the ratios of single layers are searched for, in the place of `prune` and of ratios."""

    @classmethod
    def of(cls, compress: Mapping[str, Any], finetune: TrainConfig | Mapping[str, Any], **others: Any) -> Self:
        """From the keys `COMPRESS`, and what [finetune] says; others: fields of this class. UsageError for values that make no sense."""
        layers = {name: compress.get(name) for name in ("include", "exclude")}
        return cls(
            **{name: compress[name] for name in _CHOICES if compress.get(name) is not None},
            ffp=ratio_settings("ffp", compress.get("ffp"), **layers),
            fwp=ratio_settings("fwp", compress.get("fwp"), **layers),
            calibration={theirs: compress[name] for name, theirs in _CALIBRATION.items() if compress.get(name) is not None},
            target=target_of(**{name: compress.get(name) for name in TARGET}),
            finetune=finetune,
            **others,
        )

    def at_point(self, front: Path | str | None, point: int | None) -> "Asked":
        """`over` what the point of this number in a file of `fineprune front` was asked for; itself where neither is given."""
        from .pareto.points import point_of

        named = point_of(front, point)
        return self if named is None else self.over(named)

    def over(self, other: "Asked") -> "Asked":
        """This, and `other` where it leaves something open: but ratios, or a target, take the place of all ratios and of a target."""
        ratios = self.method is not None or any(part.get("ratio") for part in (self.ffp, self.fwp))
        dropped = {"ratio", "per_layer"} if self.target else {"ratio"} if ratios or self.prune is not None else set()
        ffp, fwp = ({key: value for key, value in part.items() if key not in dropped} for part in (other.ffp, other.fwp))
        whole = isinstance(self.finetune, TrainConfig)
        return replace(
            self,
            preset=_first(self.preset, other.preset),
            method=self.method if dropped else other.method,
            rate=self.rate if dropped or self.rate is not None else other.rate,
            prune_schedule=_first(self.prune_schedule, other.prune_schedule),
            reconstruct=_first(self.reconstruct, other.reconstruct),
            ffp={**ffp, **_given(self.ffp)},
            fwp={**fwp, **_given(self.fwp)},
            prune=self.prune if dropped else other.prune,
            prune_split=_first(self.prune_split, None if self.target or ratios else other.prune_split),
            target=self.target if dropped else other.target,
            finetune=self.finetune if whole else {**_training(other.finetune), **_given(_training(self.finetune))},
            calibration={**_calibration(other.calibration), **_given(_calibration(self.calibration))},
        )

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The tables [compress] and [finetune] of which `of` makes this again; statistics at hand are left out."""
        calibration = _given(_calibration(self.calibration))
        schedule = self.prune_schedule.to_json() if isinstance(self.prune_schedule, Schedule) else self.prune_schedule
        compress = {
            **{name: getattr(self, name) for name in _CHOICES},
            "prune_schedule": schedule,
            **{kind: _given(getattr(self, kind)) or None for kind in ("ffp", "fwp")},
            **{name: calibration.get(theirs) for name, theirs in _CALIBRATION.items()},
            **({} if self.target is None else _asked_of(self.target)),
        }
        tables: dict[str, dict[str, Any]] = as_stored({"compress": _given(compress), "finetune": _given(_training(self.finetune))})
        return tables

    @property
    def seed(self) -> int:
        """By which samples to calibrate on are chosen."""
        return self._calibration.seed

    @property
    def named(self) -> str:
        """The preset that is given, or the one to pick: `obs` counts on a refit, without which (or beside a method) it is `taylor`."""
        return self.preset or ("obs" if self._refits and self.method is None else "taylor")

    @property
    def config(self) -> PruneConfig:
        """What is pruned, and how it is ranked."""
        split = self.prune_split or "preset"
        if self.target is None:
            return prune_config(self.named, ratio=self.prune, split=split, ffp=self.ffp, fwp={**self._published, **_given(self.fwp)})
        given = (
            self.prune is not None
            or self.method is not None
            or any(part.get(name) for part in (self.ffp, self.fwp) for name in ("ratio", "per_layer"))
        )
        if given or split != "preset":
            raise UsageError(
                f"a target ({self.target.text}) finds the ratios of all layers; leave prune, prune_split, method and ratios out"
            )
        unit = self.fwp.get("unit") or ("quad" if self.target.int8 else None)
        return prune_config(self.named, ffp=self.ffp, fwp={**self.fwp, "unit": unit})

    def job(self, **others: Any) -> Job:
        """The job; others: fields of Job that need no choice. UsageError for settings that cannot be."""
        training = self.finetune if isinstance(self.finetune, TrainConfig) else finetune_config(**self.finetune)
        settings: dict[str, Any] = {
            "calibration": self._calibration,
            "finetune": training,
            "reconstruct": reconstruct_config(self.reconstruct, default=training is None and not self._open),
            "schedule": schedule_of(self._schedule(training)),
        }
        if self._open:
            settings |= self._picked(training)
        if self.target is not None and self.measured:
            raise UsageError("statistics belong to ratios that are given; a target calibrates by itself")
        settings["target"] = self.target
        return Job(config=self.config, preset=self.named, **settings, **others)

    @property
    def _calibration(self) -> CalibrationConfig:
        return self.calibration if isinstance(self.calibration, CalibrationConfig) else CalibrationConfig(**_given(self.calibration))

    @property
    def _open(self) -> bool:
        """Whether it is left to us how what goes is chosen."""
        return self.preset is None and self.method is None

    @property
    def _published(self) -> dict[str, Any]:
        """Settings of weights that the method stands for; UsageError for a method, or a rate, beside which others make no sense."""
        if self.method is None:
            if self.rate is not None:
                raise UsageError(f"rate is of a method, got {self.rate!r} and none; name the method, or give prune, ffp or fwp")
            return {}
        found = criterion("fwp", self.method)
        if found is None:
            blocks = " ranks blocks, which ffp's criterion names" if criterion("ffp", self.method) else " is unknown"
            raise UsageError(f"method {self.method!r}{blocks}; choose one of {', '.join(known.name for known in criteria('fwp'))}")
        if self.prune is not None or self.target is not None or any(self.fwp.get(name) is not None for name in ("ratio", "criterion")):
            raise UsageError(f"method {self.method!r} says what weights go; leave prune, a target, and fwp's ratio and criterion out")
        rate = found.unit.ratio if self.rate is None else self.rate
        if rate is None:
            raise UsageError(f"method {self.method!r} needs a rate, the fraction that goes, such as 0.4")
        return {**found.published, "criterion": found.name, "ratio": rate}

    def _schedule(self, training: TrainConfig | None) -> Any:
        """When masks come: as is said, or as the method's source has it where the network trains."""
        found = criterion("fwp", self.method)
        return found.schedule if self.prune_schedule is None and found is not None and training is not None else self.prune_schedule

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
        if self._calibration.samples is None and not self.measured:
            picked["calibration"] = replace(self._calibration, samples=PICKED_SAMPLES)
            words.append(f"calibrated on {PICKED_SAMPLES} images at most")
        return {**picked, "picked": tuple(words)}


_RANKING = ("criterion", "scope", "share", "propagate", "softmax", "within", "count", "sample_ratio")
"""Settings of blocks and of weights that decide how they are ranked; with others than picked, masks come at once: rounds were not tried."""


def _first(mine: Any, other: Any) -> Any:
    return other if mine is None else mine


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _training(finetune: TrainConfig | Mapping[str, Any]) -> dict[str, Any]:
    """As [finetune] has it, where no teacher is a share of 0, which is not the same as a share that is left open."""
    if not isinstance(finetune, TrainConfig):
        return dict(finetune)
    return {**finetune.to_json(), "distill": 0 if finetune.distill is None else finetune.distill.to_json()}


def _calibration(calibration: CalibrationConfig | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(calibration, CalibrationConfig):
        return dict(calibration)
    return {theirs: getattr(calibration, theirs) for theirs in _CALIBRATION.values()}


def _asked_of(target: Target) -> dict[str, Any]:
    levels = [(level.ffp, level.fwp) for level in target.levels]
    return {name: getattr(target, theirs) for name, theirs in _TARGET.items()} | {"levels": levels}
