"""A network that has every kind of convolution once."""

import torch
from torch import Tensor, nn

from fineprune.compressor.layers import MaskedConv2d

INPUT_SHAPE = (3, 11, 7)


class Tiny(nn.Module):
    """Every kind of convolution once: masked with bias, strided and grouped, depthwise, 1x1 shortcut, weights only, dense."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, (3, 2), padding=(1, 2), bias=True)
        self.norm = nn.BatchNorm2d(10)
        self.body = nn.Conv2d(10, 20, 3, stride=2, padding=1, groups=5, bias=False)
        self.body_norm = nn.BatchNorm2d(20)
        self.depthwise = nn.Conv2d(20, 20, 3, padding=2, dilation=2, groups=20)
        self.shortcut = nn.Conv2d(10, 20, 1, stride=2, bias=False)
        self.weights_only = nn.Conv2d(20, 15, 3, padding="same", bias=False)
        self.last_norm = nn.BatchNorm2d(15)
        self.dense = nn.Conv2d(15, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)
        if masked:
            self._mask(stem=(11, 10), body=(6, 5), depthwise=(6, 5), shortcut=(6, 5), weights_only=None)

    def _mask(self, **output_sizes: tuple[int, int] | None) -> None:
        for name, size in output_sizes.items():
            conv = getattr(self, name)
            ffp_mask = None if size is None else torch.rand(conv.in_channels, *size) < 0.4
            fwp_mask = None if name == "stem" else torch.rand(conv.weight.shape) < 0.45
            setattr(self, name, MaskedConv2d.wrap(conv, ffp_mask=ffp_mask, fwp_mask=fwp_mask))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.depthwise(torch.relu(self.body_norm(self.body(x)))) + self.shortcut(x))
        x = self.dense(torch.relu(self.last_norm(self.weights_only(x))))
        return self.linear(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def settle(model: nn.Module) -> nn.Module:
    """BatchNorm statistics unlike the initial ones, so that a fold left out is seen, and weights that keep the signal's scale."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight.mul_(3)
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def build(*, masked: bool = True) -> nn.Module:
    """The same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return settle(Tiny(masked=masked))
