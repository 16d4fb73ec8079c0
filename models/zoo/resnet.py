"""Residual networks for small images (He et al. 2015): ResNet-(6n+2), and the ImageNet depths with a CIFAR stem.

Parameter names are those of the widely used CIFAR ResNet (conv1, bn1, layer1.0.conv1, layer1.0.shortcut.0, linear), so
public checkpoints load. ReLU and pooling are functional, as there.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import PadShortcut, conv3x3, global_average, initialise, projection


class BasicBlock(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x)); the first convolution carries the stride."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = make_shortcut(in_channels, planes, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the planes, added to the shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, shortcut: str) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem of `width` planes, then one stage per entry of `blocks`; stages double the planes and halve the image.

    shortcut: "A" (parameter free) or "B" (1x1 convolution and BatchNorm) where the shape changes.
    [N,in_channels,H,W] -> [N,num_classes], any image size.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
        width: int,
        shortcut: str = "B",
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stages = len(blocks)
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            planes = width << stage
            layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(channels, planes, stride, shortcut))
                channels = planes * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.linear(global_average(x))


def make_shortcut(in_channels: int, out_channels: int, stride: int, option: str) -> nn.Module:
    """Identity where the shape stays; else option A or B."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return PadShortcut(in_channels, out_channels, stride) if option == "A" else projection(in_channels, out_channels, stride)
