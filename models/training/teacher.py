"""The teacher of a training at work: the network that distillation.py learns from, beside the one that is trained.

It sees the images as the trained network does (augmented, in the same memory order and arithmetic), in eval mode and without gradients,
which costs about a third of a step. It is given anew whenever a run starts or is resumed, and is no part of what is saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.errors import RunError, UsageError
from fineprune.common.inputs import Inputs, mapped

from .config import TrainConfig
from .device import autocast
from .distillation import DistillConfig, distillation_loss, output_loss
from .features import Outputs, feature_loss
from .layout import lay_out
from .passes import forward, widened


class Teacher:
    """Owns `model`: a copy that nobody else uses."""

    def __init__(
        self, model: nn.Module, config: DistillConfig, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        """dtype, layout: of the trained network's forward pass and of its images."""
        self.model, self.config, self.device, self.dtype = model.to(device).eval(), config, device, dtype
        self.outputs: tuple[Outputs, Outputs] | None = None
        """Of the matched layers, of the trained network and of the teacher."""
        lay_out(self.model, layout)

    @contextmanager
    def matching(self, trained: nn.Module) -> Iterator[None]:
        """Inside the block the matched layers of the `trained` network are looked at. UsageError where it has not all of them."""
        layers = self.config.layers
        self.outputs = (Outputs(trained, layers), Outputs(self.model, layers)) if layers else None
        try:
            yield
        finally:
            for outputs in self.outputs or ():
                outputs.close()

    def scores(self, x: Inputs) -> Any:
        """Class scores float32 [N,K] of a batch, or what else the network gives."""
        with torch.inference_mode(), autocast(self.device, self.dtype):
            scores = forward(self.model, x.clone())  # a network may write to its input
        return mapped(widened(scores), Tensor.clone)  # a tensor of inference mode itself can have no part in a gradient

    def named(self, labels: Tensor, taught: Tensor) -> Tensor:
        """The labels int64 [N] (on the CPU), where one is below 0, which is none, the class that the teacher's scores [N,K] name.

        UsageError for those of a share below 1, which learns from labels, too.
        """
        unknown = labels < 0
        if not bool(unknown.any()):
            return labels
        if self.config.share < 1:
            raise UsageError(
                f"distill: of samples without a label (below 0) the teacher alone can tell; share is 1, got {self.config.share}"
            )
        return torch.where(unknown, taught.argmax(1).cpu(), labels)

    def objective(self, losses: Tensor, scores: Tensor, taught: Tensor) -> Tensor:
        """What is minimised, of each sample [N], from its cross-entropy [N], the trained network's scores [N,K] and the teacher's."""
        if taught.shape != scores.shape:
            counts = f"{tuple(taught.shape)} class scores, the network {tuple(scores.shape)}"
            raise RunError(f"the teacher gave {counts}; give a teacher that tells the same classes")
        return self._mixed(losses, distillation_loss(scores, taught, self.config.temperature), len(scores))

    def task(self, losses: Tensor, outputs: Any, taught: Any) -> Tensor:
        """The same of a user's task, from its loss of each sample [N] and both networks' outputs of any structure."""
        return self._mixed(losses, output_loss(outputs, taught).expand(len(losses)), len(losses))

    def _mixed(self, losses: Tensor, learned: Tensor, samples: int) -> Tensor:
        share = self.config.share
        learned = learned if share == 1 else (1 - share) * losses + share * learned
        if self.outputs is None:
            return learned
        return learned + self.config.features * feature_loss(*(each.take(samples) for each in self.outputs))


@contextmanager
def teaching(
    teacher: nn.Module | None,
    trained: nn.Module,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> Iterator[Teacher | None]:
    """The teacher that the config asks for, of the `trained` network, inside the block; None where it asks for none."""
    if teacher is None or config.distill is None:
        yield None
        return
    taught_by = Teacher(teacher, config.distill, device, dtype, layout)
    with taught_by.matching(trained):
        yield taught_by
