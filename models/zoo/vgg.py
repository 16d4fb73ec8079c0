"""VGG for CIFAR (Simonyan & Zisserman 2015 with BatchNorm): convolutions with bias, five max-pools, one linear layer."""

import torch
from torch import Tensor, nn

from .layers import initialise

CONVS_PER_STAGE = {13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (1, 2, 4, 8, 8)
"""Of the stages, in first widths."""


class CifarVGG(nn.Module):
    """VGG-`depth` of first `width`; every operation but the flattening is a module, so that module-based counts see all of them.

    Images of 32x32 or more (the five max-pools halve five times); [N,in_channels,H,W] -> [N,num_classes].
    """

    def __init__(self, depth: int, width: int = 64, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for times, convs in zip(WIDTHS, CONVS_PER_STAGE[depth], strict=True):
            planes = times * width
            for _ in range(convs):
                layers += [nn.Conv2d(channels, planes, 3, padding=1), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
                channels = planes
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))
