"""Small networks and data for calibration: every kind of convolution, samples in memory."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from support.fakes import FakeSplit

SHAPE = (3, 7, 5)


def samples(count: int = 20, *, seed: int = 0, dtype: torch.dtype = torch.float32, shape: tuple[int, int, int] = SHAPE) -> FakeSplit:
    """Random images [C,H,W] of `shape` with labels below 3."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return FakeSplit(images.to(dtype), torch.randint(0, 3, (count,), generator=generator))


def part(split: FakeSplit, which: slice) -> FakeSplit:
    """A piece of `split`."""
    return FakeSplit(split.images[which], split.labels[which])


class Varied(nn.Module):
    """Plain, strided, grouped, dilated, depthwise and 1x1 convolutions, a residual sum, in-place activations and a reflected border."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 4, (3, 2), padding="same", groups=2, padding_mode="reflect")
        self.depthwise = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
        self.pointwise = nn.Conv2d(4, 6, 1)
        self.down = nn.Conv2d(6, 5, 3, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.relu(self.norm(self.stem(x)))
        y = self.relu(self.grouped(stem))
        y = self.pointwise(self.relu(self.depthwise(y)))
        return self.head(self.relu(self.down(self.relu(y + stem))).mean((2, 3)))


CONVOLUTIONS = ["stem", "grouped", "depthwise", "pointwise", "down"]
"""The names of Varied's convolutions, in order of execution."""


def varied(seed: int = 0, dtype: torch.dtype = torch.float64) -> Varied:
    """A seeded Varied, in float64 so that the order of batches does not show, with BatchNorm statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Varied()
        nn.init.normal_(model.norm.running_mean)  # type: ignore[arg-type]
    return model.to(dtype)


def without_readers(name: str, masks: Mapping[str, Tensor]) -> NDArray:
    """bool [F,C/groups]: weights of Varied's layer that read channels of dropped filters, and of none that stay."""
    filters = {"stem": 6, "grouped": 4, "depthwise": 4, "pointwise": 6, "down": 5}
    none = {layer: np.zeros(count, bool) for layer, count in filters.items()}
    none |= {layer: ~mask.any((1, 2, 3)).numpy() for layer, mask in masks.items() if layer in filters}
    reads = {"stem": np.zeros(3, bool), "grouped": none["stem"], "depthwise": none["grouped"], "pointwise": none["depthwise"]}
    groups = {"grouped": 2, "depthwise": 4}.get(name, 1)
    channels = (none["pointwise"] & none["stem"] if name == "down" else reads[name]).reshape(groups, 1, -1)
    return np.repeat(channels, filters[name] // groups, axis=1).reshape(filters[name], -1)
