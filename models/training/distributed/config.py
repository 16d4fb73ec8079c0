"""What an asynchronous training is asked to do besides the plain settings (TrainConfig). Every value is checked before any work starts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from fineprune.common.errors import UsageError

Algorithm = Literal["sgd", "ssgd", "asgd", "dc-asgd", "lc-asgd"]
Mode = Literal["ratio", "chain", "normalised", "damped", "literal"]
BatchNormPolicy = Literal["async", "last-worker", "last-batch"]
Distribution = Literal["constant", "lognormal", "stragglers", "heterogeneous"]
Engine = Literal["simulated", "ray"]
Predictor = Literal["lstm", "compiled", "last"]

POLICIES: tuple[BatchNormPolicy, ...] = get_args(BatchNormPolicy)

_DEFAULT_LAMBDA = {"constant": 0.04, "adaptive": 2.0, "lc-asgd": 0.1}
"""DC-ASGD's are the source's; LC-ASGD's is the middle of the sweep in docs/results.md."""


@dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """How long virtual workers take; seconds of the virtual clock."""

    compute_s: float = 1.0
    """Mean of forward and backward pass together."""
    comm_s: float = 0.1
    """Mean of moving the weights, or a gradient, one way."""
    state_s: float = 0.01
    """Mean of a small message (loss and BatchNorm statistics, or the answer to it), one way."""
    server_s: float = 0.0
    """What the server takes to answer a state message; LC-ASGD only, others do not wait for the answer."""
    distribution: Distribution = "lognormal"
    spread: float = 0.2
    """lognormal, stragglers, heterogeneous: standard deviation of the logarithm of each duration."""
    straggler_share: float = 0.05
    """stragglers: how many of the computations are slow."""
    straggler_factor: float = 5.0
    """stragglers: how many times slower."""
    slowest: float = 3.0
    """heterogeneous: the last worker takes so many times the first one's time, those between in equal steps."""

    def __post_init__(self) -> None:
        _check_choice("time", self, {"distribution": Distribution})
        _check_number("time", self, "compute_s", "above 0", lambda v: v > 0)
        for name in ("comm_s", "state_s", "server_s", "spread"):
            _check_number("time", self, name, "at least 0", lambda v: v >= 0)
        _check_number("time", self, "straggler_share", "in [0,1]", lambda v: 0 <= v <= 1)
        for name in ("straggler_factor", "slowest"):
            _check_number("time", self, name, "at least 1", lambda v: v >= 1)

    @classmethod
    def of(cls, value: "TimeConfig | Mapping[str, Any]") -> "TimeConfig":
        """From a mapping (as in a recipe), or itself."""
        return value if isinstance(value, TimeConfig) else cls(**_known("time", cls, value))


@dataclass(frozen=True, kw_only=True)
class AsyncConfig:
    """Settings of the parameter server and its workers; UsageError names the first one that is out of range."""

    algorithm: Algorithm = "lc-asgd"
    workers: int = 4
    """M. `sgd` has one."""
    batchnorm: BatchNormPolicy = "async"
    """Which statistics the trained model gets; all are kept, none of them changes the weights."""
    batchnorm_decay: float = 0.1
    """d in E = (1-d) E + d mean."""
    lam: float | None = None
    """lambda of DC-ASGD (None: 0.04 constant, 2 adaptive) and of LC-ASGD (None: 0.1)."""
    adaptive: bool = False
    """DC-ASGD: lambda / sqrt(mean square of the gradients) in place of a constant."""
    mode: Mode = "ratio"
    """LC-ASGD: how the predicted loss enters the gradient, see compensation.py."""
    max_scale: float = 10.0
    """LC-ASGD: bound of the gradient's factor; l_delay / l_m has none where a batch is fitted perfectly."""
    predictor: Predictor = "lstm"
    """LC-ASGD: `compiled` is the same network in kernels of its own, for steps below a tenth of a second, compiled once on a machine.
    `last` switches the networks off: as many steps as last time, each with the loss that was just seen."""
    step_label: Literal["arrivals", "versions"] = "arrivals"
    """What counts as a step: state messages of other workers, or updates between a pull and its gradient."""
    window: int = 10
    """L: how many past values a predictor sees."""
    train_every: int | None = None
    """Predictors learn once in so many arrivals, from all of them at once. None: as many as there are workers."""
    max_steps: int | None = None
    """k_max. None: 4 * workers."""
    shards: Literal["shared", "iid", "dirichlet"] = "shared"
    """shared: the workers take the next batch of one common order; else each has samples of its own, see shards.py."""
    alpha: float = 0.5
    """dirichlet: concentration; small values give each worker few classes."""
    engine: Engine = "simulated"
    address: str | None = None
    """ray: a running cluster's; None starts one on this machine."""
    layerwise: bool = False
    """ray: pull the weights layer by layer, so that the forward pass starts before all have arrived."""
    heartbeat_s: float = 10.0
    """ray: a worker that is silent for so long is replaced."""
    time: TimeConfig = field(default_factory=TimeConfig)
    """simulated: the virtual clock."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "time", TimeConfig.of(self.time))
        choices = {"algorithm": Algorithm, "mode": Mode, "batchnorm": BatchNormPolicy, "engine": Engine}
        choices |= {"predictor": Predictor, "step_label": Literal["arrivals", "versions"]}
        _check_choice("asynchronous training", self, {**choices, "shards": Literal["shared", "iid", "dirichlet"]})
        for name, least in (("workers", 1), ("window", 1), ("train_every", 1), ("max_steps", 0)):
            value = getattr(self, name)
            if value is None and name in ("train_every", "max_steps"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name} is a whole number of at least {least}, got {value!r}")
        if self.algorithm == "sgd" and self.workers != 1:
            raise UsageError(f"sgd has one worker, got {self.workers}; use ssgd, asgd, dc-asgd or lc-asgd")
        for name in ("adaptive", "layerwise"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is true or false, got {getattr(self, name)!r}")
        where = "asynchronous training"
        _check_number(where, self, "batchnorm_decay", "in (0,1]", lambda v: 0 < v <= 1)
        if self.lam is not None:
            _check_number(where, self, "lam", "at least 0", lambda v: v >= 0)
        _check_number(where, self, "max_scale", "at least 1", lambda v: v >= 1)
        for name in ("alpha", "heartbeat_s"):
            _check_number(where, self, name, "above 0", lambda v: v > 0)
        if self.address is not None and self.engine != "ray":
            raise UsageError("an address belongs to the ray engine; leave it out or set engine to ray")

    @property
    def strength(self) -> float:
        """lambda, the default of the algorithm where none is given."""
        if self.lam is not None:
            return self.lam
        return _DEFAULT_LAMBDA["lc-asgd" if self.algorithm == "lc-asgd" else "adaptive" if self.adaptive else "constant"]

    @property
    def learns_every(self) -> int:
        """train_every, resolved."""
        return self.train_every or self.workers

    @property
    def step_limit(self) -> int:
        """max_steps, resolved."""
        return 4 * self.workers if self.max_steps is None else self.max_steps

    @classmethod
    def of(cls, value: "AsyncConfig | Mapping[str, Any]") -> "AsyncConfig":
        """From a mapping (as in a recipe), or itself."""
        return value if isinstance(value, AsyncConfig) else cls(**_known("asynchronous training", cls, value))

    def to_json(self) -> dict[str, Any]:
        """Every setting as JSON types."""
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result: a resumed run must have the same."""
        return {key: value for key, value in self.to_json().items() if key not in ("address", "heartbeat_s", "layerwise", "batchnorm")}


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of TrainConfig with what suits asynchronous training, where it is asked for and they are not given.

    No momentum: each worker's delay already acts as one (Mitliagkas et al. 2016), and the source's update has none.
    """
    return {**({"momentum": 0.0} if settings.get("asynchronous") is not None else {}), **settings}


def _known(where: str, kind: type, value: Any) -> dict[str, Any]:
    names = [f.name for f in fields(kind)]
    if not isinstance(value, Mapping) or set(value) - set(names):
        raise UsageError(f"{where} is a table of {', '.join(names)}, got {value!r}")
    return dict(value)


def _check_choice(where: str, config: Any, choices: Mapping[str, Any]) -> None:
    for name, literal in choices.items():
        value = getattr(config, name)
        if value not in get_args(literal):
            raise UsageError(f"{where}: {name} is one of {', '.join(get_args(literal))}, got {value!r}")


def _check_number(where: str, config: Any, name: str, text: str, fits: Any) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
        raise UsageError(f"{where}: {name} is {text}, got {value!r}")
