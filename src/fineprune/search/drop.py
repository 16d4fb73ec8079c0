"""What a network loses against the dense one on the same samples.

    drop = mean of d_n,    d_n = figure of the dense network on sample n - figure of the other,    drop <= mean + 1.645 s / sqrt(N) at 95 %

s: standard deviation of d. Differences of the same sample say more than two accuracies by themselves: most samples are right in both.
Where every d is -1, 0 or 1 the bound counts two samples more, half of one lost and half of one gained among them (Agresti and Min, 2005):
of few samples none of which differs it does not say that nothing is lost.
"""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.errors import UsageError
from fineprune.common.progress import Progress
from fineprune.models.data import ImageData
from fineprune.models.objective import ACCURACY, moved, objective_of
from fineprune.models.training.evaluate import eval_mode
from fineprune.models.training.passes import forward, widened

_ONE_SIDED, _POINTS = 1.645, 100.0
"""Standard deviations; what a sample of which the answer changes counts."""
_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Points of accuracy, or in the unit of a user's metric, that are lost (below 0: gained); `bound`: at most so many, at 95 %."""

    lost: float
    bound: float
    measure: str
    split: str
    samples: int

    @classmethod
    def between(cls, model: nn.Module, exact: Tensor, data: ImageData, device: Any, progress: Progress) -> "Drop":
        """exact: `figures` of the dense network."""
        name, split = judged_on(data)
        objective = objective_of(split)
        metric = ACCURACY if objective is None else objective.metric
        scale = (1 if metric.higher_is_better else -1) * (100 if metric.unit is None else 1)
        lost = scale * (exact - cls.figures(model, data, device, progress)).double()
        return cls(lost=float(lost.mean()), bound=_bound(lost), measure=metric.name, split=name, samples=len(lost))

    @staticmethod
    def check(split: Any) -> None:
        """UsageError where a user's metric has no figure of each sample of `split`."""
        objective = objective_of(split)
        if objective is not None and objective.metric.of_set:
            raise UsageError(
                f"max_drop is judged sample by sample, and the metric {objective.metric.name} is one figure of a whole set; give a metric "
                "of each sample, or a target without max_drop"
            )

    @staticmethod
    def figures(model: nn.Module, data: ImageData, device: Any, progress: Progress) -> Tensor:
        """float32 [N]: the figure of each held-out sample, whose mean is the accuracy, or the user's metric."""
        _, split = judged_on(data)
        objective, found = objective_of(split), list[Tensor]()
        metric = ACCURACY if objective is None else objective.metric
        model.to(device)
        with eval_mode(model), torch.inference_mode():
            batches = progress(split.batches(_BATCH), total=split.number_of_batches(_BATCH), description="comparing with the dense network")
            for batch in batches:
                outputs = widened(forward(model, batch.images.to(device, copy=True)))
                found.append(metric.figures(outputs, moved(batch.labels, device), len(batch.indices)).cpu())
        return torch.cat(found)

    def kept(self, allowed: float) -> bool:
        """Whether it is at most `allowed`, at 95 %."""
        return self.bound <= allowed

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.lost:.2f} points of {self.measure} lost (at most {self.bound:.2f} at 95 %) on {self.samples} {self.split} samples"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def _bound(lost: Tensor) -> float:
    """Of differences [N], in points or a metric's unit."""
    found = lost.abs().unique()
    count, mean = len(lost), float(lost.mean())
    squares = float(lost.square().sum())
    if len(found[found > 0]) <= 1:  # as of right and wrong
        unit = float(found.max()) or _POINTS
        count, squares = count + 2, squares + unit**2
        mean *= len(lost) / count
    if count < 2:
        return float("inf")
    return mean + _ONE_SIDED * sqrt(max(0.0, squares - count * mean**2) / (count - 1) / count)


def judged_on(data: ImageData) -> tuple[str, Any]:
    """The split that a search compares networks on, with its name: validation, or training where there is none.

    UsageError for data without samples.
    """
    for name, split in (("validation", data.validation), ("training", data.train)):
        if len(split):
            return name, split
    raise UsageError(f"the data set {data.spec} is empty; give samples to measure on")
