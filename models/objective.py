"""What a network's answers are worth: the loss that training minimises, and the figure that people read.

    classification   cross-entropy of each sample; accuracy, the share of samples whose largest score is their label's
    a user's task    loss(outputs, targets), a mean over the samples or one number for each; metric(outputs, targets) likewise

A split whose `objective` is set has targets of a user's task; others hold class labels.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.errors import FinepruneError, RunError, UsageError, said_by
from fineprune.common.inputs import floats, mapped, structure, tensors

Function = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Metric:
    """A figure of merit: function(outputs, targets) is its mean over the samples, or one number for each.

    unit: written after it; None: a share of 1, which is written in per cent.
    """

    name: str
    function: Function
    higher_is_better: bool = True
    unit: str | None = ""

    def __post_init__(self) -> None:
        for name, value in (("name", self.name), ("unit", self.unit or "")):
            if not isinstance(value, str):
                raise UsageError(f"Metric: {name} is text, got {value!r:.80}")
        if not self.name or not callable(self.function) or not isinstance(self.higher_is_better, bool):
            raise UsageError("a Metric has a name, a function(outputs, targets) and whether higher_is_better (true or false)")

    def figures(self, outputs: Any, targets: Any, count: int) -> Tensor:
        """[count], whose mean is the metric of these samples."""
        return _each(self.function, f"metric {self.name}", outputs, targets, count).detach().float()


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
    for name, value in (("loss", loss), ("metric", metric)):
        if value is not None and not callable(value) and not isinstance(value, Metric):
            raise UsageError(f"{name} is a function of (outputs, targets), got {value!r:.80}")
    if isinstance(loss, Metric):
        raise UsageError("loss is a function of (outputs, targets), got a Metric")
    if loss is None:
        raise UsageError("a metric belongs to a task with a loss; give loss=, too, such as torch.nn.functional.cross_entropy")
    if metric is None:
        metric = Metric("loss", loss, higher_is_better=False)
    return Objective(loss, metric if isinstance(metric, Metric) else Metric(getattr(metric, "__name__", "metric"), metric))


def moved(targets: Any, device: torch.device | str) -> Any:
    """Targets of any structure of tensors, on `device`."""
    return mapped(targets, lambda tensor: tensor.to(device, non_blocking=True))


def identity_of(function: Callable[..., Any]) -> str:
    """The name of a function, and a hash of its code and constants where Python has them."""
    code, name = getattr(function, "__code__", None), getattr(function, "__qualname__", type(function).__qualname__)
    if code is None:
        return f"{name} {function!r}" if isinstance(function, nn.Module) else name
    constants = [value for value in code.co_consts if isinstance(value, int | float | str)]
    digest = hashlib.sha256(code.co_code + repr((constants, code.co_names)).encode()).hexdigest()
    return f"{function.__module__}.{name} {digest[:16]}"


def _sample(values: Any, place: int) -> Any:
    return mapped(values, lambda tensor: tensor[place : place + 1])


def _each(function: Function, name: str, outputs: Any, targets: Any, count: int) -> Tensor:
    try:
        value = function(outputs, targets)
    except FinepruneError:
        raise
    except Exception as error:  # the user's own code may raise anything
        got = f"{list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise RunError(f"the {name} failed on outputs {got} of {count} samples: {said_by(error)}") from error
    value = value if isinstance(value, Tensor) else torch.tensor(float(value))
    if value.numel() == 1:
        return value.reshape(1).expand(count)
    if value.shape != (count,):
        raise RunError(f"the {name} gives {list(value.shape)} for {count} samples; give their mean, or one number for each")
    return value
