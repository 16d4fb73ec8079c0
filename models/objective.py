"""What a network's answers are worth: the loss that training minimises, and the figure that people read.

    classification   cross-entropy of each sample; accuracy, the share of samples whose largest score is their label's
    a user's task    loss(outputs, targets), a mean over the samples or one number for each; metric(outputs, targets) likewise, or one
                     figure of a whole set (mAP, mIoU, AUC): update(outputs, targets) for each batch, then compute()

A split whose `objective` is set has targets of a user's task; others hold class labels.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from fineprune.common.errors import FinepruneError, RunError, UsageError, said_by
from fineprune.common.inputs import floats, mapped, structure, tensors

Function = Callable[[Any, Any], Any]


class OfSet(Protocol):
    """A figure of a whole set, as torchmetrics has them; what is given stays as it is, a copy of it is updated."""

    def update(self, outputs: Any, targets: Any) -> Any:
        """Take in a batch, on the CPU."""
        ...

    def compute(self) -> Any:
        """The figure of all that was taken in: one number."""
        ...


@dataclass(frozen=True)
class Metric:
    """A figure of merit: function(outputs, targets) is its mean over the samples, or one number for each; or it is a figure of a whole
    set of samples, an object with update(outputs, targets) and compute().

    unit: written after it; None: a share of 1, which is written in per cent.
    """

    name: str
    function: Function | OfSet
    higher_is_better: bool = True
    unit: str | None = ""

    def __post_init__(self) -> None:
        for name, value in (("name", self.name), ("unit", self.unit or "")):
            if not isinstance(value, str):
                raise UsageError(f"Metric: {name} is text, got {value!r:.80}")
        if isinstance(self.function, type):
            given = self.function.__name__
            raise UsageError(f"the {self.name or 'metric'} is the class {given}; give an object of it, such as {given}()")
        if not self.name or not (callable(self.function) or self.of_set) or not isinstance(self.higher_is_better, bool):
            raise UsageError(
                "a Metric has a name, a function(outputs, targets) or an object with update and compute, and whether higher_is_better "
                "(true or false)"
            )

    @property
    def of_set(self) -> bool:
        """Whether it is a figure of a whole set, which no sample has by itself."""
        return is_of_set(self.function)

    def figures(self, outputs: Any, targets: Any, count: int) -> Tensor:
        """[count], whose mean is the metric of these samples. UsageError for one of a whole set."""
        if self.of_set or not callable(self.function):
            raise UsageError(f"the metric {self.name} is a figure of a whole set; no single sample has one")
        return _each(self.function, f"metric {self.name}", outputs, targets, count).detach().float()


def is_of_set(function: Any) -> TypeGuard[OfSet]:
    """Whether it has update and compute (torchmetrics' can be called, too)."""
    return all(callable(getattr(function, name, None)) for name in ("update", "compute")) and not isinstance(function, type)


class Tally:
    """A metric over samples that come batch by batch."""

    def __init__(self, metric: Metric) -> None:
        self._metric, self.sum, self.count = metric, 0.0, 0
        with torch.inference_mode():
            self._whole = deepcopy(metric.function) if is_of_set(metric.function) else None

    def add(self, outputs: Any, targets: Any, count: int) -> None:
        """Take in a batch of `count` samples. RunError where the user's function fails."""
        self.count += count
        if self._whole is None:
            self.sum += float(self._metric.figures(outputs, targets, count).double().sum())
            return
        with torch.inference_mode(), _users(f"metric {self._metric.name}", outputs, count):
            self._whole.update(moved(outputs, "cpu"), moved(targets, "cpu"))

    @property
    def value(self) -> float:
        """The figure of all that was taken in. RunError where it is none."""
        if self._whole is None:
            return self.sum / self.count
        with torch.inference_mode(), _users(f"metric {self._metric.name}", None, self.count):
            found = self._whole.compute()
            if isinstance(found, bool) or (not isinstance(found, int | float) and getattr(found, "shape", None) not in ((), (1,))):
                raise RunError(f"the metric {self._metric.name} computes a {type(found).__name__} of {structure(found)}; give one number")
            return float(found)


def _same_class(scores: Tensor, others: Tensor) -> Tensor:
    return (scores.argmax(1) == others.argmax(1)).float()


def _relative_error(outputs: Any, others: Any) -> Tensor:
    """||y - y'|| / ||y'|| of each sample, over all floating-point numbers of the outputs; of the whole batch where they have no samples."""
    given, wanted = (torch.cat(side, 1) for side in by_sample(outputs, others))
    return (given - wanted).norm(dim=1) / wanted.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)


def by_sample(outputs: Any, others: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The floating-point tensors of outputs of one structure, each float32 [N,numbers]; [1,numbers] where any has no axis of samples.

    RunError where they differ in structure or shapes.
    """
    pair = floats(outputs), floats(others)
    if [tensor.shape for tensor in pair[0]] != [tensor.shape for tensor in pair[1]]:
        raise RunError(f"outputs {structure(outputs)} are compared with others, {structure(others)}; both networks must give the same")
    rows = {tensor.shape[:1] for tensor in pair[0]}
    count = len(pair[0][0]) if len(rows) == 1 and pair[0][0].dim() else 1
    first, second = ([tensor.float().reshape(count, -1) for tensor in side] for side in pair)
    return first, second


ACCURACY = Metric("accuracy", lambda scores, labels: (scores.argmax(1) == labels).float(), unit=None)
AGREEMENT = Metric("agreement with the dense network", _same_class, unit=None)
RELATIVE_ERROR = Metric("relative error to the dense network's outputs", _relative_error, higher_is_better=False, unit=None)
"""The last two compare with another network's outputs, of which the first takes class scores."""


def is_class_scores(outputs: Any) -> bool:
    """Whether outputs look like one row of class scores for each sample."""
    return len(getattr(outputs, "shape", ())) == 2 and outputs.shape[1] > 1


@dataclass(frozen=True)
class Objective:
    """A user's task."""

    loss: Function
    metric: Metric

    def losses(self, outputs: Any, targets: Any, count: int) -> Tensor:
        """[count], whose mean is what a step minimises."""
        return _each(self.loss, "loss", outputs, targets, count)

    def figures(self, outputs: Any, targets: Any, count: int) -> Tensor:
        """As `Metric.figures`."""
        return self.metric.figures(outputs, targets, count)

    def to_json(self) -> dict[str, Any]:
        """What tells this task from others: a run that was interrupted under another loss does not go on under this one."""
        metric = self.metric
        return {"loss": identity_of(self.loss), "metric": [metric.name, identity_of(metric.function), metric.higher_is_better, metric.unit]}

    def summed(self, outputs: Any, targets: Any, count: int) -> Tensor:
        """The sum of each sample's own loss, whatever a mean over a batch would weigh by.

        Of outputs that have no axis of samples (a network that gives its losses) it is that of their mean.
        """
        if not all(tensor.shape[:1] == (count,) for tensor in tensors(outputs)):
            return self.losses(outputs, targets, count).sum()
        alone = [self.losses(_sample(outputs, place), _sample(targets, place), 1) for place in range(count)]
        return torch.cat(alone).sum()


def objective_of(split: Any) -> Objective | None:
    """A user's task, or None for classification."""
    return getattr(split, "objective", None)


def better(value: float, best: float, split: Any) -> bool:
    """Whether `value`, measured on `split`, is at least as good as `best`."""
    objective = objective_of(split)
    return value >= best if objective is None or objective.metric.higher_is_better else value <= best


def task_of(loss: Any, metric: Any) -> Objective | None:
    """The task that these arguments of `compress` ask for; None where they ask for none. UsageError for what is no function."""
    if loss is None and metric is None:
        return None
    if isinstance(loss, Metric) or (loss is not None and not callable(loss)):
        raise UsageError(f"loss is a function of (outputs, targets), got {'a Metric' if isinstance(loss, Metric) else f'{loss!r:.80}'}")
    if metric is not None:
        metric = metric_of(metric)
    if loss is None:
        raise UsageError("a metric belongs to a task with a loss; give loss=, too, such as torch.nn.functional.cross_entropy")
    return Objective(loss, metric or Metric("loss", loss, higher_is_better=False))


def metric_of(given: Any) -> Metric:
    """A user's metric under its name, where it has one. UsageError for what is none."""
    if isinstance(given, Metric):
        return given
    if is_of_set(given):
        higher = getattr(given, "higher_is_better", None)  # as torchmetrics says it
        return Metric(type(given).__name__, given, higher_is_better=True if higher is None else bool(higher))
    if not callable(given):
        raise UsageError(f"metric is a function of (outputs, targets), or an object with update and compute, got {given!r:.80}")
    return Metric(getattr(given, "__name__", "metric"), given)


def moved(targets: Any, device: torch.device | str) -> Any:
    """Outputs or targets of any structure of tensors, on `device`."""
    waits = torch.device(device).type == "cpu"  # where they are read at once: a copy that is not waited for may be unfinished there
    return mapped(targets, lambda tensor: tensor.to(device, non_blocking=not waits))


def identity_of(function: Any) -> str:
    """The name of a function, and a hash of its code and constants where Python has them."""
    code, name = getattr(function, "__code__", None), getattr(function, "__qualname__", type(function).__qualname__)
    if code is None:
        return f"{name} {function!r}" if isinstance(function, nn.Module) else name
    constants = [value for value in code.co_consts if isinstance(value, int | float | str)]
    digest = hashlib.sha256(code.co_code + repr((constants, code.co_names)).encode()).hexdigest()
    return f"{function.__module__}.{name} {digest[:16]}"


def _sample(values: Any, place: int) -> Any:
    return mapped(values, lambda tensor: tensor[place : place + 1])


@contextmanager
def _users(name: str, outputs: Any, count: int) -> Iterator[None]:
    """The user's own code, which may raise anything: RunError."""
    try:
        yield
    except FinepruneError:
        raise
    except Exception as error:
        got = "" if outputs is None else f" {list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__}"
        raise RunError(f"the {name} failed on outputs{got} of {count} samples: {said_by(error)}") from error


def _each(function: Function, name: str, outputs: Any, targets: Any, count: int) -> Tensor:
    with _users(name, outputs, count):
        value = function(outputs, targets)
    value = value if isinstance(value, Tensor) else torch.tensor(float(value))
    if value.numel() == 1:
        return value.reshape(1).expand(count)
    if value.shape != (count,):
        raise RunError(f"the {name} gives {list(value.shape)} for {count} samples; give their mean, or one number for each")
    return value
