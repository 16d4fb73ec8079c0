"""A training loop of the user's own: a network with masks to train there, a bundle of what comes out, and the same without our layers.

bundle -> prepare -> the user's loop (plain, autocast, averaged weights, compiled) -> finish -> bundle
                                                                         -> plain  -> nn.Module of torch's layers alone
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fineprune.common.errors import UsageError
from fineprune.common.wrappers import check_network, unwrapped
from fineprune.compressor.bake import Masks, bake, dense_twin, masked_layers
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.masks import KINDS

from .arguments import check_arguments


def prepare(model: nn.Module, masks: Bundle | Path | str | Masks) -> nn.Module:
    """A copy of the dense network `model` that carries `masks`, in training mode.

    masks: a bundle or its folder, whose weights come too; or {"fwp": {layer: bool [F,C/groups,kh,kw]}, "ffp": {layer: bool [C,oh,ow]}} on
    the network's own weights. Masked layers are of the same class and parameters; a weight that is dropped gets no gradient, and no
    optimizer brings it back. UsageError for masks that fit no layer, RunError for a bundle of another network.
    """
    check_arguments(architecture=model)
    check_network(unwrapped(model))
    if isinstance(masks, Mapping):
        known = [kind.name for kind in KINDS]
        if not masks or any(name not in known or not isinstance(of_kind, Mapping) for name, of_kind in masks.items()):
            raise UsageError(
                f"masks are a bundle, or a dict of {' and '.join(known)}, each a dict of masks by layer; got {list(masks)!r:.80}"
            )
        masked = bake(unwrapped(model), masks)
    else:
        masked = _bundle(masks).restore(model)
    return masked.train()


def finish(
    module: nn.Module,
    bundle: Bundle | Path | str | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    output: Path | str | None = None,
) -> Bundle:
    """The bundle of a network with masks as it is now, also in wrappers (averaged weights, torch.compile), too; written to `output`.

    bundle: that of `prepare`, which knows the input shape and what was pruned; or input_shape (C,H,W). Accuracies of the earlier weights
    are left out. UsageError where the network carries no masks, or neither of the two is given.
    """
    check_arguments(architecture=module)
    module = unwrapped(module)
    if next(masked_layers(module), None) is None:
        raise UsageError("the network carries no masks: finish takes what prepare gave, or a copy of it")
    if (bundle is None) == (input_shape is None):
        raise UsageError("finish takes the bundle that prepare was given, or input_shape=(C, H, W): one of the two")
    if bundle is None:
        done = Bundle.of(module, {"input_shape": list(input_shape or ())})
    else:
        before = _bundle(bundle)
        _check_whole(module, before)
        done = Bundle.of(module, before.facts, graph=before.graph)
        if _same(before.masks, done.masks):  # filters that share a mask still do
            done = Bundle.of(module, before.facts, before.groups, graph=before.graph)
        elif "inputs" in before.facts:
            raise UsageError("the masks are no longer those of the bundle, and a forward leaves nothing to count them on: compress again")
    if output is not None:
        done.save(output)
    return done


def plain(module: nn.Module) -> nn.Module:
    """A copy of a network with masks in which dropped weights are zeros of ordinary layers. UsageError where blocks are dropped."""
    check_arguments(architecture=module)
    module = unwrapped(module)
    blocked = [name for name, layer in masked_layers(module) if layer.block_mask is not None]
    if blocked:
        raise UsageError(f"blocks are dropped in {', '.join(blocked)}, which zeros of weights cannot say; export it with fineprune.to_onnx")
    return dense_twin(module)


def _bundle(bundle: Bundle | Path | str) -> Bundle:
    check_arguments(bundle=bundle)
    return bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)


def _check_whole(module: nn.Module, bundle: Bundle) -> None:
    """UsageError where the layers of `bundle` are those of a part of `module`, such as the network of a LightningModule."""
    masked, theirs = {name for name, _ in masked_layers(module)}, {name for of_kind in bundle.masks.values() for name in of_kind}
    for part in [name for name, _ in module.named_modules() if name]:
        if theirs and masked == {f"{part}.{name}" for name in theirs}:
            raise UsageError(f"finish takes the network that prepare gave, and {type(module).__name__} holds it as {part}: give that")


def _same(one: Mapping[str, Mapping[str, Tensor]], other: Mapping[str, Mapping[str, Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        of_kind.keys() == other[kind].keys() and all(torch.equal(mask, other[kind][name]) for name, mask in of_kind.items())
        for kind, of_kind in one.items()
    )
