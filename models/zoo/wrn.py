"""Wide residual networks WRN-(6n+4)-k: pre-activation basic blocks of 16k, 32k, 64k planes (Zagoruyko & Komodakis 2016)."""

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import conv3x3, global_average, initialise


class WideBlock(nn.Module):
    """conv3x3(relu(bn(conv3x3(a)))) + shortcut, a = relu(bn(x)); a 1x1 shortcut starts from a, an identity from x."""

    def __init__(self, in_channels: int, planes: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = conv3x3(planes, planes)
        changes = stride != 1 or in_channels != planes
        self.shortcut = nn.Conv2d(in_channels, planes, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.dropout(F.relu(self.bn2(self.conv1(activated))))
        return self.conv2(out) + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """Depth 6n+4, widening factor k; [N,in_channels,H,W] -> [N,num_classes]."""

    def __init__(self, depth: int, k: int, dropout: float = 0.0, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = conv3x3(in_channels, 16)
        channels = 16
        stages = []
        for stage in range(3):
            planes = 16 * k << stage
            blocks = []
            for index in range(count):
                blocks.append(WideBlock(channels, planes, 2 if stage > 0 and index == 0 else 1, dropout))
                channels = planes
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(global_average(F.relu(self.bn(x))))
