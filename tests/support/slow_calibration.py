"""Calibration the slow way: one sample at a time, naive loops, gates on blocks and weights for autograd to differentiate."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support import reference
from support.fakes import FakeSplit


class GatedConv(nn.Module):
    """conv with a factor on every block [C,oh,ow] and on every weight [F,C/g,kh,kw]: d loss / d gate is the effect of dropping it."""

    def __init__(self, conv: nn.Conv2d, output: tuple[int, int], mask: Tensor | None) -> None:
        super().__init__()
        self.__dict__["conv"] = conv
        ones = torch.ones(conv.in_channels, *output, dtype=conv.weight.dtype)
        self.block_gates = nn.Parameter(ones if mask is None else mask.to(ones.dtype))
        self.tap_gates = nn.Parameter(torch.ones_like(conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        padded, (sh, sw), (dh, dw) = pad(conv, x), conv.stride, conv.dilation
        weight = conv.weight.detach() * self.tap_gates
        oh, ow = self.block_gates.shape[1:]
        per_group, filters = weight.shape[1], conv.out_channels // conv.groups
        y = [torch.zeros(len(x), oh, ow, dtype=x.dtype) for _ in range(conv.out_channels)]
        for f, k, u, v in np.ndindex(*weight.shape):
            c = f // filters * per_group + k
            pixels = padded[:, c, u * dh : u * dh + (oh - 1) * sh + 1 : sh, v * dw : v * dw + (ow - 1) * sw + 1 : sw]
            y[f] = y[f] + weight[f, k, u, v] * self.block_gates[c] * pixels
        bias = 0 if conv.bias is None else conv.bias.detach()[:, None, None]
        return torch.stack(y, 1) + bias


class TopKConv(nn.Module):
    """Stage 1 of Algorithm 8 for one layer: rank the blocks of each channel, keep K, count, and convolve what is left."""

    def __init__(self, conv: nn.Conv2d, keep: int, *, masked: bool) -> None:
        super().__init__()
        self.__dict__["conv"] = conv
        self.keep, self.masked = keep, masked
        self.frequency: np.ndarray | int = 0

    def forward(self, x: Tensor) -> Tensor:
        conv, padded = self.conv, pad(self.conv, x).numpy()
        scores = reference.block_scores(padded, conv.kernel_size, conv.stride, 0, conv.dilation)
        mask = np.zeros(scores.shape, bool)
        for n, c in np.ndindex(*scores.shape[:2]):
            best = np.argsort(-scores[n, c].reshape(-1))[: self.keep]
            mask[n, c].reshape(-1)[best] = True
        self.frequency = self.frequency + mask.sum(0)
        bias = None if conv.bias is None else conv.bias.detach().numpy()
        used = mask if self.masked else None
        y = reference.masked_conv2d(padded, conv.weight.detach().numpy(), bias, used, conv.stride, 0, conv.dilation, conv.groups)
        return torch.from_numpy(y)


class SumsConv(nn.Module):
    """S of Algorithm 9, absolute and signed, for one layer under its mask."""

    def __init__(self, conv: nn.Conv2d, mask: Tensor | None) -> None:
        super().__init__()
        self.__dict__["conv"] = conv
        self.mask = None if mask is None else mask.numpy()
        self.sums: dict[str, np.ndarray | int] = {"absolute": 0, "signed": 0}

    def forward(self, x: Tensor) -> Tensor:
        conv, padded = self.conv, pad(self.conv, x).numpy()
        for key, values in (("absolute", np.abs(padded)), ("signed", padded)):
            sums = reference.tap_sums(values, self.mask, conv.kernel_size, conv.stride, 0, conv.dilation)
            self.sums[key] = self.sums[key] + sums
        return conv(x)


def first_order_effects(
    model: nn.Module, split: FakeSplit, outputs: Mapping[str, tuple[int, int]], masks: Mapping[str, Tensor]
) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """For every sample and layer: (t of blocks [C,oh,ow], t of weights [F,C/g,kh,kw])."""
    gated = exchanged(model, outputs, lambda name, conv: GatedConv(conv, outputs[name], masks.get(name)))
    effects = []
    for image, label in zip(split.images, split.labels, strict=True):
        model.zero_grad(set_to_none=True)
        for layer in gated.values():
            layer.zero_grad(set_to_none=True)
        F.cross_entropy(model(image[None]), label[None]).backward()
        effects.append({name: (layer.block_gates.grad, layer.tap_gates.grad) for name, layer in gated.items()})
    return effects


def exchanged(model: nn.Module, names: Mapping[str, object], make: Callable[[str, nn.Conv2d], nn.Module]) -> dict[str, nn.Module]:
    """Put make(name, conv) in the place of each convolution of `model`, which is put in eval mode."""
    made = {name: make(name, model.get_submodule(name)) for name in names}
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    model.eval()
    return made


def pad(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """x with the convolution's padding around it, whatever its mode."""
    if isinstance(conv.padding, str):
        totals = [d * (k - 1) if conv.padding == "same" else 0 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        (top, left), (bottom, right) = [t // 2 for t in totals], [t - t // 2 for t in totals]
    else:
        (top, left) = (bottom, right) = conv.padding
    return F.pad(x, (left, right, top, bottom), mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
