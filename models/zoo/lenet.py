"""LeNet-5 with ReLU and max-pooling (LeCun et al. 1998), the form in common use for CIFAR-10."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import UsageError


class LeNet(nn.Module):
    """conv 6@5x5, pool, conv 16@5x5, pool, then fully connected 120, 84, num_classes; no padding.

    in_channels: colour channels; image_size: height and width in pixels, at least 16, fixes the first linear layer.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, image_size: int = 32) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise UsageError(f"lenet needs image_size of at least 16, got {image_size}")
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(F.relu(self.fc2(x)))
