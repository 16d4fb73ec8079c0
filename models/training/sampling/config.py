"""Which policy chooses an epoch's samples, and its parameters. Every value is checked before any work starts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from fineprune.common.errors import UsageError

PolicyName = Literal["none", "fine-pruning", "infobatch", "random"]
OrderName = Literal["worst", "easiest", "random"]

_SCHEDULE = ("window", "start", "attenuation", "block", "prune_epochs", "block_from", "fraction")
_COUNTING = ("tolerance", "require_count", "tie_break", "rescale")
_BELONGS: dict[str, tuple[str, ...]] = {
    "none": (),
    "fine-pruning": (*_SCHEDULE, "order", *_COUNTING),
    "random": _SCHEDULE,
    "infobatch": ("drop", "full_share"),
}
"""The parameters that each policy reads."""

_SOURCE_EPOCHS, _SOURCE_WINDOW = 160, 60


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Settings of the choice of samples; UsageError names the first one that is out of range or of another policy."""

    name: PolicyName = "none"
    window: int | None = None
    """Epochs after which the counts start anew. None: 60, below 160 epochs in proportion, at least a block (`for_epochs`)."""
    start: int | None = None
    """Epochs of the first window that prune nothing. None: a third of the window (20 of 60)."""
    attenuation: float = 2.0
    """Each window starts to prune this many times earlier than the one before."""
    block: int = 4
    prune_epochs: int = 3
    """Of every `block` epochs the first `prune_epochs` prune."""
    block_from: Literal["run", "start"] = "run"
    """Blocks are counted from the first epoch of the run, or from where the window starts to prune."""
    fraction: float = 0.25
    """Samples that a pruned epoch leaves out."""
    order: OrderName = "worst"
    """Samples with the largest counts of high losses go first, as in the source, or those with the smallest, or any: the control."""
    tolerance: float = 0.0
    """A sample counts as high where its loss is at least (1 + tolerance) times its batch's mean."""
    require_count: bool = False
    """Prune only samples that were high at least once in the window."""
    tie_break: Literal["random", "loss"] = "random"
    """Of equal counts: any, or by the most recent loss, the largest (order worst) or smallest (easiest) first."""
    rescale: bool = False
    """Kept samples with the count of the last one pruned weigh more, in place of the pruned ones."""
    drop: float = 0.5
    """infobatch: fraction of the samples below the mean loss that an epoch leaves out."""
    full_share: float = 0.125
    """infobatch: share of the epochs, at the end, that visit every sample."""

    def __post_init__(self) -> None:
        if self.name not in get_args(PolicyName):
            raise UsageError(f"policy is one of {', '.join(get_args(PolicyName))}, got {self.name!r}")
        self._check_belonging()
        self._check_choices()
        self._check_numbers()
        if self.window is not None and self.start is not None and self.start >= self.window:
            raise UsageError(f"policy {self.name}: start is below window={self.window}, got {self.start}; else nothing is ever pruned")
        if self.prune_epochs > self.block:
            raise UsageError(f"policy {self.name}: prune_epochs is at most block={self.block}, got {self.prune_epochs}")

    @classmethod
    def of(cls, value: "PolicyConfig | str | Mapping[str, Any]") -> "PolicyConfig":
        """From a name, a mapping with `name` and parameters (as in a recipe), or itself."""
        if isinstance(value, PolicyConfig):
            return value
        if not isinstance(value, str | Mapping):
            raise UsageError(f"policy is a name or a table with a name and parameters, got {value!r}")
        settings = {"name": value} if isinstance(value, str) else dict(value)
        unknown = set(settings) - {field.name for field in fields(cls)}
        if unknown:
            takes = ", ".join(_BELONGS.get(str(settings.get("name", "none")), ())) or "no parameter"
            raise UsageError(f"policy has unknown {', '.join(sorted(map(str, unknown)))}; {settings.get('name', 'none')} takes {takes}")
        return cls(**settings)

    def for_epochs(self, epochs: int) -> "PolicyConfig":
        """With window and start, where they are not given, in the proportion that the source's 60 and 20 have to its 160 epochs.

        A window has a block at least: in a shorter one hardly anything would be counted before it ends.
        """
        if "window" not in _BELONGS[self.name]:
            return self
        window = self.window
        if window is None:
            scaled = max(self.block, min(_SOURCE_WINDOW, round(epochs * _SOURCE_WINDOW / _SOURCE_EPOCHS)))
            window = scaled if self.start is None else max(scaled, self.start + 1)
        return replace(self, window=window, start=window // 3 if self.start is None else self.start)

    def to_json(self) -> dict[str, Any]:
        """The name and the parameters that the policy reads."""
        return {key: value for key, value in asdict(self).items() if key == "name" or key in _BELONGS[self.name]}

    def _check_belonging(self) -> None:
        for field in fields(self):
            if field.name != "name" and field.name not in _BELONGS[self.name] and getattr(self, field.name) != field.default:
                takes = ", ".join(_BELONGS[self.name]) or "no parameter"
                raise UsageError(f"policy {self.name} has no {field.name}; it takes {takes}")
        if self.order == "random" and (
            given := [f.name for f in fields(self) if f.name in _COUNTING and getattr(self, f.name) != f.default]
        ):
            raise UsageError(f"policy {self.name}: order random counts no losses; leave {', '.join(given)} out, or choose another order")

    def _check_choices(self) -> None:
        for name, choices in (("block_from", ("run", "start")), ("order", get_args(OrderName)), ("tie_break", ("random", "loss"))):
            if getattr(self, name) not in choices:
                raise UsageError(f"policy {self.name}: {name} is {' or '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("require_count", "rescale"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"policy {self.name}: {name} is true or false, got {getattr(self, name)!r}")
        for name, least in (("window", 1), ("start", 0), ("block", 1), ("prune_epochs", 1)):
            value = getattr(self, name)
            optional = value is None and name in ("window", "start")
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UsageError(f"policy {self.name}: {name} is a whole number of at least {least}, got {value!r}")

    def _check_numbers(self) -> None:
        limits = {
            "attenuation": (lambda v: v >= 1, "at least 1"),
            "fraction": (lambda v: 0 < v < 1, "in (0,1)"),
            "tolerance": (lambda v: v > -1, "above -1"),
            "drop": (lambda v: 0 < v < 1, "in (0,1)"),
            "full_share": (lambda v: 0 <= v < 1, "in [0,1)"),
        }
        for name, (fits, text) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
                raise UsageError(f"policy {self.name}: {name} is {text}, got {value!r}")
