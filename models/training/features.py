"""Feature matching: the network that is trained also comes to give, within, what its teacher gives there.

sum over layers l of  || o_l - o_l^t ||^2 / || o_l^t ||^2      for each sample; o_l, o_l^t: outputs of layer l here and in the teacher
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.errors import RunError, UsageError
from fineprune.common.inputs import Inputs, answer

_LEAST = 1e-12
"""Added to the squared norm of a layer that gives nothing."""


def feature_loss(own: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """The sum above of each sample: float32 [N] from outputs [N,...] of the same layers."""
    terms = []
    for mine, theirs in zip(own, taught, strict=True):
        if mine.shape != theirs.shape:
            raise RunError(
                f"distill: a layer gave {tuple(mine.shape)} numbers and {tuple(theirs.shape)} in the teacher; match other layers"
            )
        own_numbers, their_numbers = (each.float().reshape(len(each), -1) for each in (mine, theirs))
        distance = (own_numbers - their_numbers).square().sum(1)
        terms.append(distance / (their_numbers.square().sum(1) + _LEAST))
    return torch.stack(terms).sum(0)


class Outputs:
    """Keeps what each of `layers`, names of modules of `model`, gave at its last call."""

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        self._kept: dict[str, Any] = {}
        self.layers = layers
        modules = dict(model.named_modules())
        for name in layers:
            if name not in modules:
                raise UsageError(f"distill: the network has no layer {name!r} to match; name modules such as {', '.join(_examples(model))}")
        self._hooks = [modules[name].register_forward_hook(partial(self._keep, name)) for name in layers]

    def take(self, samples: int) -> list[Tensor]:
        """The outputs since the last call, in the order of the layers. RunError where one gave no tensor of so many samples."""
        kept, self._kept = self._kept, {}
        for name in self.layers:
            value = kept.get(name)
            if not isinstance(value, Tensor) or value.shape[:1] != (samples,):
                gave = f"{tuple(value.shape)} for {samples} images" if isinstance(value, Tensor) else "no tensor in the forward pass"
                raise RunError(f"distill: {name} gave {gave}, so nothing can be matched there; name other layers")
        return [kept[name] for name in self.layers]

    def close(self) -> None:
        """Look no longer."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._kept[name] = output


def stage_ends(model: nn.Module, image: Inputs) -> tuple[str, ...]:
    """Of each size of maps that `model` has (but 1x1), the module that is the last to give it, from one sample."""
    last: dict[tuple[int, ...], str] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and max(output.shape[2:]) > 1:
            last[tuple(output.shape[2:])] = name

    hooks = [module.register_forward_hook(partial(note, name)) for name, module in model.named_modules() if name]
    try:
        with torch.inference_mode():
            answer(model, image.clone())
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise UsageError("distill: the network gives no maps to match; name its layers")
    return tuple(last.values())


def _examples(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name and list(module.parameters(recurse=False))][:3]
