"""Distillation: the network that is trained also learns what another one, its teacher, answers to the same images.

    loss = (1 - h) CE(z_s, label) + h T^2 KL( softmax(z_t / T) || softmax(z_s / T) )

for each sample; z_s, z_t: class scores of the network and of its teacher, h: `share`, T: `temperature`
(Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015). With h = 1 the labels have no part in it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fineprune.common.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How much a teacher counts; UsageError names the first value that is out of range."""

    share: float = 0.9
    """h, in (0,1]: the teacher's part of the loss; the labels have the rest."""
    temperature: float = 4.0
    """T: both networks' scores are divided by it, so that the classes that the teacher thinks unlikely count, too."""

    def __post_init__(self) -> None:
        limits = {"share": (lambda v: 0 < v <= 1, "in (0,1]"), "temperature": (lambda v: v > 0, "above 0")}
        for name, (fits, text) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
                raise UsageError(f"distill: {name} is {text}, got {value!r}")

    @classmethod
    def of(cls, value: "DistillConfig | float | Mapping[str, Any]") -> "DistillConfig":
        """From a share, a mapping with the fields' names (as in a recipe), or itself."""
        if isinstance(value, DistillConfig):
            return value
        settings = dict(value) if isinstance(value, Mapping) else {"share": value}
        names = [field.name for field in fields(cls)]
        if unknown := set(settings) - set(names):
            raise UsageError(f"distill has unknown {', '.join(sorted(map(str, unknown)))}; it takes {', '.join(names)}")
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        """Every setting as JSON types."""
        return asdict(self)


def distillation_loss(scores: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(scores / T)) of each sample, in nats: float32 [N] from class scores float32 [N,K].

    T^2 keeps the size of the gradient, which the division by T lowers twice.
    """
    log_p, log_q = (F.log_softmax(each / temperature, dim=1) for each in (taught, scores))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)
