"""What masks and measurements rely on, tried on a few samples before a pass over all of them.

Masks that drop nothing, masks beside weights that are zero in their place, and every collector at work leave the network's answers as
they are. Where they don't, masks would be chosen for another network than the one that is run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fineprune.calibrate.collect import outputs
from fineprune.calibrate.convolutions import ConvSite, evaluating
from fineprune.calibrate.layers import conv_at, measuring
from fineprune.calibrate.steadiness import answers, difference, unsteadiness
from fineprune.common.errors import RunError
from fineprune.common.progress import Progress

from .bake import bake, dense_twin, masked_layers
from .config import PruneConfig

TOLERANCE = 1e-4
"""Of the largest output, as for exported files: sums of masked layers are taken in another order."""


def check_agreement(model: nn.Module, sites: Sequence[ConvSite], config: PruneConfig, images: Tensor, progress: Progress) -> None:
    """RunError where masks or collectors change what `model` gives for images[N,C,H,W]: it names the layers where it can.

    A network whose answers vary by themselves is refused with the cause; one whose answers vary with the batch gets a warning.
    """
    vary = unsteadiness(model, images, TOLERANCE)
    if vary is not None and not vary.with_batch:
        raise RunError(f"{vary.cause}; nothing can be measured or compared on it: let its forward do that in training alone")
    if vary is not None:
        progress.log(f"warning: {vary.cause}; scores, accuracies and exported files hold for batches like those measured alone")
    expected = answers(model, images)
    blocks, taps = (part.chosen(sites) if part.prunes else [] for part in (config.ffp, config.fwp))
    _check_masks(model, blocks, taps, images, expected)
    for part in config.parts:
        chosen = part.chosen(sites)
        if (measure := part.method.measure(part, sites)) is None or not chosen:
            continue
        collectors = measure.trial().collectors(model, chosen, seed=0)
        for collector in collectors.values():
            collector.begin(torch.arange(len(images)))
        with evaluating(model), measuring(collectors.values()):
            apart = difference(expected, outputs(model, images, collectors))
        if apart > TOLERANCE:
            raise RunError(
                f"the network's outputs differ by {apart:.2%} of the largest where they are measured: its forward goes another way "
                "under gradients (torch.is_grad_enabled, requires_grad); make that depend on self.training, or use --preset thesis"
            )


def _check_masks(model: nn.Module, blocks: Sequence[ConvSite], taps: Sequence[ConvSite], images: Tensor, expected: Tensor) -> None:
    ffp = {site.name: torch.ones(site.in_channels, *site.output_size, dtype=torch.bool) for site in blocks}
    fwp = {site.name: torch.ones_like(conv_at(model, site).weight, dtype=torch.bool) for site in taps}
    half = {name: (torch.arange(mask.numel()) % 2 == 0).view(mask.shape) for name, mask in fwp.items()}

    def changed(names: Iterable[str]) -> float:
        masked = bake(model, ffp_masks=_of(ffp, names), fwp_masks=_of(fwp, names))
        for _, layer in masked_layers(masked):  # the order in memory is not what is tried here: some networks read it (x.view)
            layer.register_forward_hook(lambda layer, inputs, output: output.contiguous(), prepend=True)
        return difference(expected, answers(masked, images))

    def unseen(names: Iterable[str]) -> float:
        masked = bake(model, fwp_masks=_of(half, names))
        return difference(answers(dense_twin(masked), images), answers(masked, images))

    where = list(dict.fromkeys([*ffp, *fwp]))
    _require(changed, where, "masks that drop nothing change the network's outputs", "its code asks for the layer's type or the like")
    _require(unseen, list(fwp), "weights that masks drop still act on the network's outputs", "its code uses them outside the layer, too")


def _require(apart: Callable[[Iterable[str]], float], names: Sequence[str], what: str, why: str) -> None:
    if (far := apart(names)) <= TOLERANCE:
        return
    at_fault = [name for name in names if apart([name]) > TOLERANCE] or list(names)
    remedy = " ".join(f"--exclude {name}" for name in at_fault)
    raise RunError(f"{what} (by {far:.2%} of the largest) in {', '.join(at_fault)}: {why}; leave that dense: {remedy}")


def _of(masks: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    return {name: masks[name] for name in names if name in masks}
