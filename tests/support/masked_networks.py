"""Networks whose convolutions are masked at random, for exports."""

import torch
from torch import nn

from fineprune.compressor.layers import MaskedConv2d


def mask_randomly(model: nn.Module, input_shape: tuple[int, int, int], *, ffp: float = 0.6, fwp: float = 0.6, seed: int = 0) -> nn.Module:
    """`model` in eval mode with every third convolution left dense, every third masked by weights, every third by blocks and weights.

    ffp, fwp: fractions that are kept. BatchNorm statistics get values of their own, so that a fold left out is seen.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, tuple[int, int]] = {}
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: sizes.update({name: (y.shape[2], y.shape[3])}))
        for name, module in convs.items()
    ]
    model.eval()
    with torch.inference_mode():
        model(torch.zeros(1, *input_shape))
    for hook in hooks:
        hook.remove()
    for number, (name, conv) in enumerate(convs.items()):
        parent = model.get_submodule(name.rpartition(".")[0])
        blocks = torch.rand(conv.in_channels, *sizes[name], generator=generator) < ffp if number % 3 == 2 else None
        weights = torch.rand(conv.weight.shape, generator=generator) < fwp if number % 3 else None
        if blocks is not None or weights is not None:
            setattr(parent, name.rpartition(".")[2], MaskedConv2d.wrap(conv, ffp_mask=blocks, fwp_mask=weights))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)  # type: ignore[union-attr]
                module.running_var.copy_(torch.rand(module.bias.shape, generator=generator) + 0.5)  # type: ignore[union-attr]
    return model.eval()
