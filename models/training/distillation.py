"""Distillation: the network that is trained also learns what another one, its teacher, answers to the same images.

    loss = (1 - h) CE(z_s, label) + h T^2 KL( softmax(z_t / T) || softmax(z_s / T) )

for each sample; z_s, z_t: class scores of the network and of its teacher, h: `share`, T: `temperature` (Hinton, Vinyals, Dean,
"Distilling the Knowledge in a Neural Network", 2015). With h = 1 the labels have no part in it. Feature matching (features.py) is added
with the weight `features`.

Outputs of a user's task are no class scores. There the second term is, over all floating-point numbers y of the outputs,

    h || y_s - y_t ||^2 / || y_t ||^2
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fineprune.common.errors import UsageError

from ..objective import by_sample

_LEAST = 1e-12
"""Added to the squared norm of outputs that are all zero."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How much a teacher counts; UsageError names the first value that is out of range."""

    share: float = 0.9
    """h, in (0,1]: the teacher's part of the loss; the labels have the rest."""
    temperature: float = 4.0
    """T: both networks' scores are divided by it, so that the classes that the teacher thinks unlikely count, too."""

    features: float = 0.0
    """Weight of feature matching beside the loss; 0: none."""
    layers: tuple[str, ...] = ()
    """Modules whose outputs are matched; none given: the last one of each stage."""

    def __post_init__(self) -> None:
        limits = {
            "share": (lambda v: 0 < v <= 1, "in (0,1]"),
            "temperature": (lambda v: v > 0, "above 0"),
            "features": (lambda v: v >= 0, "at least 0"),
        }
        for name, (fits, text) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
                raise UsageError(f"distill: {name} is {text}, got {value!r}")
        if not isinstance(self.layers, list | tuple) or not all(isinstance(name, str) for name in self.layers):
            raise UsageError(f"distill: layers is a list of names, got {self.layers!r}")
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.layers and not self.features:
            raise UsageError("distill: layers are matched by a weight; give features, too, such as 1.0")

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
        """Every setting in use as JSON types."""
        matched = {"features": self.features, "layers": list(self.layers)} if self.features else {}
        return {"share": self.share, "temperature": self.temperature, **matched}


def distillation_loss(scores: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(scores / T)) of each sample, in nats: float32 [N] from class scores float32 [N,K].

    T^2 keeps the size of the gradient, which the division by T lowers twice.
    """
    log_p, log_q = (F.log_softmax(each / temperature, dim=1) for each in (taught, scores))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)


def output_loss(outputs: Any, taught: Any) -> Tensor:
    """|| y_s - y_t ||^2 / || y_t ||^2 of each sample, [N] (or [1], without an axis of samples); RunError where forms differ."""
    given, wanted = (torch.cat(side, 1) for side in by_sample(outputs, taught))
    return (given - wanted).square().sum(1) / (wanted.square().sum(1) + _LEAST)
