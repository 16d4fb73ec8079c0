"""The teacher of a training at work: the network that distillation.py learns from, beside the one that is trained.

It sees the images as the trained network does (augmented, in the same memory order and arithmetic), in eval mode and without gradients,
which costs about a third of a step. It is given anew whenever a run starts or is resumed, and is no part of what is saved.
"""

import torch
from torch import Tensor, nn

from fineprune.common.errors import RunError

from .config import TrainConfig
from .device import autocast
from .distillation import DistillConfig, distillation_loss
from .layout import lay_out


class Teacher:
    """Owns `model`: a copy that nobody else uses."""

    def __init__(
        self, model: nn.Module, config: DistillConfig, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        """dtype, layout: of the trained network's forward pass and of its images."""
        self.model, self.config, self.device, self.dtype = model.to(device).eval(), config, device, dtype
        lay_out(self.model, layout)

    def scores(self, x: Tensor) -> Tensor:
        """Class scores float32 [N,K] of images [N,C,H,W]."""
        with torch.inference_mode(), autocast(self.device, self.dtype):
            scores: Tensor = self.model(x.clone())  # a network may write to its input
        return scores.float().clone()  # a tensor of inference mode itself can have no part in a gradient

    def objective(self, losses: Tensor, scores: Tensor, x: Tensor) -> Tensor:
        """What is minimised, of each sample [N], from the cross-entropies [N] and scores [N,K] of the trained network on images x."""
        taught, share = self.scores(x), self.config.share
        if taught.shape != scores.shape:
            counts = f"{tuple(taught.shape)} class scores, the network {tuple(scores.shape)}"
            raise RunError(f"the teacher gave {counts}; give a teacher that tells the same classes")
        learned = distillation_loss(scores, taught, self.config.temperature)
        return learned if share == 1 else (1 - share) * losses + share * learned


def teacher_of(
    model: nn.Module | None, config: TrainConfig, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Teacher | None:
    """The teacher that the config asks for; None where it asks for none."""
    return None if model is None or config.distill is None else Teacher(model, config.distill, device, dtype, layout)
