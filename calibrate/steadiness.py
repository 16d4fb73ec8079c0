"""Whether a network in eval mode answers each sample by itself: the same at every call, whatever else is in the batch.

Outputs are compared by all floating-point tensors in them, whatever their structure.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fineprune.common.errors import FinepruneError, RunError, said_by
from fineprune.common.inputs import Inputs, answer, floats

from .convolutions import evaluating

BATCH_TOLERANCE = 1e-3
"""Of the largest output: batches of other sizes are summed in another order (1e-6 or so), batch statistics change outputs by percents."""


class Unsteady(NamedTuple):
    """Why outputs vary, in whole phrases, and whether it is the batch alone that they vary with."""

    cause: str
    with_batch: bool


def unsteadiness(model: nn.Module, images: Inputs, tolerance: float, alone: Inputs | None = None) -> Unsteady | None:
    """Run `model` in eval mode on images[N,C,H,W] twice, then beside as many others; None where its answers stay the same.

    Of a `Structured`, which nobody can make others of, `alone` is the first sample by itself. Differences up to `tolerance` of the largest
    output count as none between equal calls. The random state is as before afterwards; `images` stay as they are. Anything that compares
    outputs of two runs (a file with its network) can ask here why they differ. RunError where the network fails on the batch.
    """
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        first, second = answers(model, images), answers(model, images)
        if difference(first, second) > tolerance:
            torch.manual_seed(0)
            seeded = answers(model, images)
            torch.manual_seed(0)
            random = difference(seeded, answers(model, images)) <= tolerance
            cause = (
                "draws random numbers"
                if random
                else "draws numbers that torch.manual_seed does not fix, or keeps something from call to call"
            )
            where = _where(model, images, images, tolerance)
            return Unsteady(f"two equal calls give different outputs in eval mode, since {where} {cause}", with_batch=False)
        fewer, more = (images, _beside(images)) if isinstance(images, Tensor) else (alone, images)
        few = first if fewer is images or fewer is None else answers(model, fewer)
        if fewer is not None and _mixed(few, answers(model, more), len(fewer), len(more)):
            where = _where(model, fewer, more, BATCH_TOLERANCE)
            return Unsteady(f"a sample's output depends on the others in its batch, since {where} mixes them", with_batch=True)
    return None


def _beside(images: Tensor) -> Tensor:
    return torch.cat([images, 1 - 3 * images])  # of another mean, spread, largest value and sign


def _mixed(one: list[Tensor], other: list[Tensor], few: int, many: int) -> bool:
    """Whether outputs of `few` samples differ among `many`, which begin with them; those that have no axis of samples say nothing."""
    by_sample = [(a, b[:few]) for a, b in zip(one, other, strict=False) if (a.shape[:1], b.shape[:1]) == ((few,), (many,))]
    return any(a.shape == b.shape and difference([a], [b]) > BATCH_TOLERANCE for a, b in by_sample)


def answers(model: nn.Module, images: Inputs) -> list[Tensor]:
    """What the model gives for a copy of a batch in eval mode without gradients; RunError where it fails or gives no numbers."""
    try:
        with evaluating(model), torch.no_grad():
            outputs = answer(model, images.clone())
    except FinepruneError:
        raise
    except Exception as error:  # the network's own code may raise anything
        why = f"the network takes one sample but not a batch of {len(images)}: {said_by(error)}"
        raise RunError(f"{why}; let its forward take any batch") from error
    found = floats(outputs)
    if not found:
        raise RunError(f"the network returns {type(outputs).__name__}, in which no tensor of numbers is; let it return what it computes")
    return found


def difference(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference of two sequences of tensors, of each as a fraction of its largest value; infinite where shapes differ."""
    if [tensor.shape for tensor in ones] != [tensor.shape for tensor in others]:
        return float("inf")
    return max(map(_apart, ones, others), default=0.0)


def _apart(one: Tensor, other: Tensor) -> float:
    if torch.equal(one, other):
        return 0.0
    first, second = (tensor.detach().double().nan_to_num(0, 0, 0) for tensor in (one, other))  # NaN in both is for others to name
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-30))


def _where(model: nn.Module, images: Inputs, others: Inputs, tolerance: float) -> str:
    """The first module whose values for `images` differ between a call on them and one on `others`, which begin with them."""
    for (entering, name, one), (_, name_again, other) in zip(_events(model, images), _events(model, others), strict=False):
        if name != name_again:
            break
        if len(one) == len(images) and len(other) == len(others) and difference([one], [other[: len(images)]]) > tolerance:
            parent = name.rpartition(".")[0]
            return f"{_named(model, parent)}, before {name}," if entering else _named(model, name)
    return "its forward"


def _named(model: nn.Module, name: str) -> str:
    module = model.get_submodule(name)
    kind = f"{name} ({type(module).__name__})" if name else type(module).__name__
    return f"the forward of {kind}" if next(module.children(), None) is not None else kind


def _events(model: nn.Module, images: Inputs) -> list[tuple[bool, str, Tensor]]:
    """(whether it enters, name of the module, tensor that goes in or comes out), in the order of one forward pass."""
    events: list[tuple[bool, str, Tensor]] = []

    def note(entering: bool, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any = None) -> None:
            values = args if entering else output
            value = values[0] if isinstance(values, tuple) and values else values
            if isinstance(value, Tensor) and value.dim():
                events.append((entering, name, value.detach().clone()))

        return hook

    handles = []
    for name, module in model.named_modules():
        handles += [module.register_forward_pre_hook(note(True, name)), module.register_forward_hook(note(False, name))]
    try:
        answers(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return events
