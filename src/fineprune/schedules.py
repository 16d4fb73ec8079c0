"""When masks come: at once (no schedule), in rounds before any training, or while the network trains.

rounds    after round k of n      r_k = 1 - (1 - r)^(k/n)            the same share of what is left goes each time
cubic     at step t of T          r_t = r (1 - (1 - t/T)^3)          T = `share` of the run's steps (Zhu and Gupta, 2017)
each-epoch  at every epoch        r_t = r                            all of it, chosen anew (He et al., 2019)
asl       at every step           thresholds that are trained        until `share` of the run (Retsinas et al., 2020; thresholds.py)

r is the pruned fraction that is asked for. Between rounds the kept weights are refitted (compressor/reconstruct), so that the
next round ranks weights that have made good already what is gone, on the inputs that they have by then.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, get_args

from fineprune.common.errors import UsageError
from fineprune.compressor.config import Part, PruneConfig
from fineprune.compressor.reconstruct.run import ReconstructConfig
from fineprune.models.training.checks import check_masking
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.sampling.time_model import trained_batches


class Schedule(ABC):
    """What decides how much is pruned when."""

    name: ClassVar[str]
    while_training: ClassVar[bool]
    """Whether the network trains meanwhile."""

    @abstractmethod
    def check(self, finetune: TrainConfig | None, reconstruct: ReconstructConfig | None) -> None:
        """UsageError where masks cannot come so."""

    def check_config(self, config: PruneConfig) -> None:
        """UsageError where these masks cannot come so."""
        return

    def to_json(self) -> dict[str, Any]:
        """The name and every setting."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]  # subclasses are dataclasses


@dataclass(frozen=True, kw_only=True)
class Rounds(Schedule):
    """Several times a part; UsageError for less than one."""

    rounds: int = 4

    name = "rounds"
    while_training = False

    def __post_init__(self) -> None:
        _check_count("rounds", self.rounds)

    def check(self, finetune: TrainConfig | None, reconstruct: ReconstructConfig | None) -> None:
        if reconstruct is None:
            raise UsageError("prune_schedule 'rounds' refits the kept weights between rounds; leave reconstruct on, or prune at once")

    def ratio(self, done: int, whole: float) -> float:
        """What is pruned after so many rounds, where `whole` is asked for."""
        return whole if done == self.rounds else 1 - (1 - whole) ** (done / self.rounds)


class WhileTraining(Schedule):
    """Several updates over a run, each of which ranks all weights anew."""

    while_training = True
    updates: Any
    samples: int
    """Of the training data, on which each update calibrates (where its method needs any)."""
    dropped: str
    """What becomes of weights that an update drops, until the next one."""

    def over(self, epochs: int) -> Self:
        """The same with all numbers known, for a run of so many epochs."""
        return self

    @abstractmethod
    def due(self, progress: float) -> int:
        """How many updates there are to have been once `progress`, in [0,1], of the run is done."""

    def reached(self, updates: int) -> float:
        """The part of what is asked for that is pruned after so many updates, in [0,1]: all of it, unless it comes by and by."""
        return 1.0

    def ratio(self, updates: int, whole: float) -> float:
        """What is pruned after so many updates, where `whole` is asked for."""
        return self.reached(updates) * whole

    def check(self, finetune: TrainConfig | None, reconstruct: ReconstructConfig | None) -> None:
        """UsageError where there is nothing to train, or where masks would not be final in time."""
        if finetune is None:
            raise UsageError("masks that come by a schedule come while the network trains; give epochs of at least 1, or mask at once")
        if reconstruct is not None:
            raise UsageError(
                f"reconstruction refits the weights under final masks, and prune_schedule {self.name!r} has none before it trains"
            )
        check_masking(finetune)
        if finetune.asynchronous is not None and self.dropped != "kept":
            raise UsageError(
                f"prune_schedule: a parameter server holds the weights, and dropped={self.dropped!r} changes them; give 'kept'"
            )
        run = self.over(finetune.epochs)
        if finetune.qat_epochs and run.due(1 - finetune.qat_epochs / finetune.epochs) < run.updates:
            raise UsageError(
                f"{self._when(run)}, and qat_epochs={finetune.qat_epochs} of epochs={finetune.epochs} "
                "begin before they are final; lower one of the two"
            )

    def check_steps(self, finetune: TrainConfig, samples: int) -> None:
        """UsageError where a fine-tuning on so many samples could end before the masks are final, which its last step must see."""
        policy, run = finetune.policy.name, self.over(finetune.epochs)
        steps = 1 if policy != "none" else trained_batches(samples, finetune.batch_size)  # a policy may leave any number out
        if run.due(1 - 1 / (finetune.epochs * steps)) < run.updates:
            epochs = f"{finetune.epochs} epochs of {steps} steps" if policy == "none" else f"{finetune.epochs} epochs with policy {policy}"
            raise UsageError(f"{epochs} may end before the masks are final; train longer, or lower prune_schedule's {self._lower}")

    _lower: ClassVar[str]
    """The setting by which masks come sooner."""

    @staticmethod
    @abstractmethod
    def _when(run: Any) -> str:
        """Over what masks come, in words."""


@dataclass(frozen=True, kw_only=True)
class CubicSchedule(WhileTraining):
    """A few at each of `updates`; UsageError names the first value that is out of range."""

    share: float = 0.45
    """The part of the run, in (0,1), after which the masks are final."""
    updates: int = 8
    """How often they change until then."""
    samples: int = 1024

    name = "cubic"
    dropped = "kept"
    _lower = "share"

    def __post_init__(self) -> None:
        _check_number("share", self.share, below=1)
        _check_count("updates", self.updates)
        _check_count("samples", self.samples)

    @staticmethod
    def _when(run: Any) -> str:
        return f"masks come over the first {run.share:.0%} of the run"

    def due(self, progress: float) -> int:
        """Evenly over `share`."""
        return min(self.updates, math.floor(progress / self.share * self.updates + 1e-9))

    def reached(self, updates: int) -> float:
        """Most of it soon."""
        return 1 - (1 - updates / self.updates) ** 3


Dropped = Literal["zeroed", "kept", "trained"]


@dataclass(frozen=True, kw_only=True)
class EachEpoch(WhileTraining):
    """All of what is asked for at the start of every epoch, chosen anew; UsageError names the first value that is out of range."""

    updates: int | None = None
    """How often, evenly over the run; None: at every epoch."""
    samples: int = 1024
    dropped: Dropped = "zeroed"
    """zeroed: their values are gone, and they get no gradient; kept: they get none, and may come back as they were; trained: their
    values are gone, and they learn like all others until the next update. The last masks stay in any case."""

    name = "each-epoch"
    _lower = "updates"

    def __post_init__(self) -> None:
        _check_count("updates", 1 if self.updates is None else self.updates)
        _check_count("samples", self.samples)
        if self.dropped not in get_args(Dropped):
            raise UsageError(f"prune_schedule: dropped is one of {', '.join(get_args(Dropped))}, got {self.dropped!r}")

    @staticmethod
    def _when(run: Any) -> str:
        return f"masks change at {run.updates} times in the run"

    def over(self, epochs: int) -> Self:
        """With the number of updates."""
        return replace(self, updates=epochs if self.updates is None else self.updates)

    def due(self, progress: float) -> int:
        """The first at once."""
        count = self.updates or 1
        return min(count, math.floor(progress * count + 1e-9) + 1)


@dataclass(frozen=True, kw_only=True)
class Adaptive(WhileTraining):
    """Thresholds of weights that are trained with them; UsageError names the first value that is out of range."""

    share: float = 0.8
    """The part of the run, in (0,1), after which the masks are final."""
    strength: float = 10.0
    """Of the loss that asks for the ratio, above 0."""
    speed: float = 0.01
    """The learning rate of thresholds, as a multiple of that of the weights; above 0."""
    smallest: int = 1000
    """Layers of fewer weights stay dense."""
    samples: int = 1024

    name = "asl"
    updates = 1
    dropped = "trained"
    _lower = "share"

    def __post_init__(self) -> None:
        _check_number("share", self.share, below=1)
        _check_number("strength", self.strength)
        _check_number("speed", self.speed)
        _check_count("smallest", self.smallest)
        _check_count("samples", self.samples)

    @staticmethod
    def _when(run: Any) -> str:
        return f"masks are learned over the first {run.share:.0%} of the run"

    def check_config(self, config: PruneConfig) -> None:
        """UsageError for another method, or where it is to drop more than single weights."""
        part = config.fwp
        if config.common or part.criterion != self.name or not part.ratio:
            raise UsageError(
                f"prune_schedule 'asl' trains the thresholds of method 'asl', and not of {part.criterion!r}; give method and rate"
            )
        if part.per_layer or part.unit != "weight" or part.sharing != "filter" or part.scope != "global":
            raise UsageError(
                "method 'asl' learns the ratio of each layer, of single weights; leave fwp's per_layer, unit, share and scope out"
            )

    def due(self, progress: float) -> int:
        """The final masks."""
        return int(progress >= self.share - 1e-9)


AnySchedule = Rounds | CubicSchedule | EachEpoch | Adaptive
_KINDS: dict[str, type[AnySchedule]] = {kind.name: kind for kind in (Rounds, CubicSchedule, EachEpoch, Adaptive)}
_NAMES = ", ".join(["one-shot", *_KINDS])


def schedule_of(value: AnySchedule | str | Mapping[str, Any] | None) -> AnySchedule | None:
    """From a name (one-shot is none), a mapping with a name and the fields' values (cubic's without a name), or itself."""
    if value is None or isinstance(value, AnySchedule):
        return value
    if not isinstance(value, str | Mapping):
        raise UsageError(f"prune_schedule is a name or a table with a name and settings, got {value!r}")
    settings = {"name": value} if isinstance(value, str) else dict(value)
    name = settings.pop("name", CubicSchedule.name)
    kind = _KINDS.get(name)
    if kind is None and name != "one-shot":
        raise UsageError(f"prune_schedule is one of {_NAMES}, got {name!r}")
    names = [f.name for f in fields(kind)] if kind else []
    if unknown := set(settings) - set(names):
        raise UsageError(
            f"prune_schedule {name} has unknown {', '.join(sorted(map(str, unknown)))}; it takes {', '.join(names) or 'nothing'}"
        )
    return kind(**settings) if kind else None


def at(config: PruneConfig, ratio: Callable[[float], float]) -> PruneConfig:
    """`config` with other pruned fractions, each of its own."""

    def part_at(part: Part) -> Any:
        return replace(part, ratio=ratio(part.ratio), per_layer={glob: ratio(whole) for glob, whole in part.per_layer.items()})

    return PruneConfig(ffp=part_at(config.ffp), fwp=part_at(config.fwp), common=ratio(config.common))


def _check_number(name: str, value: Any, *, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
        raise UsageError(f"prune_schedule: {name} is {'in (0,1)' if below == 1 else 'a number above 0'}, got {value!r}")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"prune_schedule: {name} is a whole number of at least 1, got {value!r}")
