"""A model's trainable parameters as one vector: what server and workers send each other."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..step import trainable_parameters


class FlatModel:
    """Copies between the trainable parameters of `model`, in their order, and float32 vectors of `size` numbers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = trainable_parameters(model)
        self.size = sum(p.numel() for p in self.parameters)
        self._sizes = [p.numel() for p in self.parameters]

    def weights(self) -> Tensor:
        """A new vector of the parameters."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def load(self, weights: Tensor) -> None:
        """Set the parameters. The masks, buffers and frozen parameters of the model stay."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights.split(self._sizes), strict=True):
                parameter.copy_(value.view(parameter.shape))

    def gradient(self) -> Tensor:
        """A new vector of the gradients; zero where a parameter took no part."""
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self.parameters])

    def spans(self) -> Sequence[tuple[nn.Parameter, int, int]]:
        """Each parameter with where it begins and ends in the vectors."""
        ends = torch.tensor(self._sizes).cumsum(0).tolist()
        return [(p, end - size, end) for p, size, end in zip(self.parameters, self._sizes, ends, strict=True)]
