"""What masks and measurements rely on, tried on a few samples before a pass over all of them.

Masks that drop nothing, masks beside weights that are zero in their place, and every collector at work leave the network's answers as
they are. Where they don't, masks would be chosen for another network than the one that is run.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from fineprune.calibrate.calls import acting
from fineprune.calibrate.collect import outputs
from fineprune.calibrate.convolutions import ConvSite, evaluating
from fineprune.calibrate.steadiness import answers, difference, unsteadiness
from fineprune.common.errors import RunError
from fineprune.common.inputs import Inputs, floats
from fineprune.common.progress import Progress

from .bake import Masks, bake, masked_layers
from .config import PruneConfig
from .masks import KINDS

TOLERANCE = 1e-4
"""Of the largest output, as for exported files: sums of masked layers are taken in another order."""


def check_agreement(
    model: nn.Module, sites: Sequence[ConvSite], config: PruneConfig, images: Inputs, progress: Progress, alone: Inputs | None = None
) -> None:
    """RunError where masks or collectors change what `model` gives for images[N,C,H,W]: it names the layers where it can.

    alone: the first sample by itself, of a `Structured`.

    A network whose answers vary by themselves is refused with the cause; one whose answers vary with the batch gets a warning.
    """
    vary = unsteadiness(model, images, TOLERANCE, alone)
    if vary is not None and not vary.with_batch:
        raise RunError(f"{vary.cause}; nothing can be measured or compared on it: let its forward do that in training alone")
    if vary is not None:
        progress.log(f"warning: {vary.cause}; scores, accuracies and exported files hold for batches like those measured alone")
    expected = answers(model, images)
    _check_masks(model, sites, config, images, expected)
    for part in config.parts:
        chosen = part.chosen(sites)
        if (measure := part.method.measure(part, sites)) is None or not chosen:
            continue
        collectors = measure.trial().collectors(model, chosen, seed=0, samples=len(images))
        for collector in collectors.values():
            collector.begin(torch.arange(len(images)))
        with evaluating(model), acting(collectors.values()):
            apart = difference(expected, floats(outputs(model, images, collectors)))
        if apart > TOLERANCE:
            raise RunError(
                f"the network's outputs differ by {apart:.2%} of the largest where they are measured: its forward goes another way "
                "under gradients (torch.is_grad_enabled, requires_grad); make that depend on self.training, or use --preset thesis"
            )


def _check_masks(model: nn.Module, sites: Sequence[ConvSite], config: PruneConfig, images: Inputs, expected: list[Tensor]) -> None:
    ones: dict[str, dict[str, Tensor]] = {}
    half: dict[str, dict[str, Tensor]] = {}
    for kind in KINDS:
        chosen = [site for part in config.parts if part.mask == kind.name for site in part.chosen(sites)]
        shapes = {s.name: kind.shape(s.weight_shape, s.groups, s.output_size) for s in chosen}
        ones[kind.name] = {name: torch.ones([size or 0 for size in shape], dtype=torch.bool) for name, shape in shapes.items()}
        every_other = {name: (torch.arange(mask.numel()) % 2 == 0).view(mask.shape) for name, mask in ones[kind.name].items()}
        half[kind.name] = {name: mask for name, mask in every_other.items() if kind.as_weight_mask(mask) is not None}

    def changed(names: Iterable[str]) -> float:
        masked = bake(model, _of(ones, names))
        for _, layer in masked_layers(masked):  # the order in memory is not what is tried here: some networks read it (x.view)
            layer.register_forward_hook(lambda layer, inputs, output: output.contiguous(), prepend=True)
        return difference(expected, answers(masked, images))

    def unseen(names: Iterable[str]) -> float:
        masked, zeroed = (bake(model, _of(half, names)) for _ in range(2))
        for _, layer in masked_layers(zeroed):
            layer.fold_weight_masks()
        return difference(answers(zeroed, images), answers(masked, images))

    _require(
        changed, _layers(ones), "masks that drop nothing change the network's outputs", "its code asks for the layer's type or the like"
    )
    _require(
        unseen, _layers(half), "weights that masks drop still act on the network's outputs", "its code uses them outside the layer, too"
    )


def _require(apart: Callable[[Iterable[str]], float], names: Sequence[str], what: str, why: str) -> None:
    if (far := apart(names)) <= TOLERANCE:
        return
    at_fault = [name for name in names if apart([name]) > TOLERANCE] or list(names)
    remedy = " ".join(f"--exclude {name}" for name in at_fault)
    where = f"(by {far:.2%} of the largest) in {', '.join(at_fault)}"
    raise RunError(f"{what} {where}: {why}; leave that dense: {remedy} (in Python: exclude={at_fault!r})")


def _of(masks: Masks, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    names = set(names)
    return {kind: {name: mask for name, mask in of_kind.items() if name in names} for kind, of_kind in masks.items()}


def _layers(masks: Masks) -> list[str]:
    return list(dict.fromkeys(name for of_kind in masks.values() for name in of_kind))
