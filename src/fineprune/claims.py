"""What a compression may say of itself, in one line each; an empty one where there is nothing to say."""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.compressor.config import PruneConfig
from fineprune.compressor.macs import MacReport
from fineprune.compressor.prune import Pruned


def beforehand(report: MacReport, sites: Sequence[ConvSite]) -> str:
    """How little of a network can be pruned, where convolutions are not nearly all of it."""
    total = max(report.macs_dense, 1)
    prunable = sum(site.macs for site in sites) / total
    if prunable > _NEARLY_ALL:
        return ""
    kinds = {"linear": "linear layers", "functional": "products outside layers (attention)"}
    shares = {text: sum(row.macs_dense for row in report.layers if row.kind == kind) / total for kind, text in kinds.items()}
    shares["convolutions that are left dense"] = 1 - prunable - sum(shares.values())
    said = " and ".join(f"{text} are {share:.1%}" for text, share in shares.items() if share >= _NAMED)
    return f"{said} of the multiply-adds and are not pruned; at most {prunable:.1%} of all can go"


_NEARLY_ALL, _NAMED = 0.9, 0.005


def chance_level(accuracy: float | None, labels: Tensor, *, on_the_fly: bool = False) -> str:
    """A warning where `accuracy` on samples of classes `labels` [N] cannot be told from guessing.

    on_the_fly: the network may be an untrained one, which is pruned while it trains; then that is said.
    """
    if accuracy is None or not len(labels):
        return ""
    chance = int(labels.bincount().max()) / len(labels)  # of always saying the most frequent class
    noise = 2 * sqrt(chance * (1 - chance) / len(labels))
    if accuracy > max(chance + noise, 1.5 * chance if chance <= _MANY_CLASSES else 0.0):
        return ""
    what = f"an accuracy of {accuracy:.2%} is chance level (guessing reaches {chance:.2%})"
    if on_the_fly:
        return f"{what}: the network is pruned on the fly, while it trains from the start; a trained one is given by its checkpoint"
    return f"warning: {what}: is a checkpoint given, are mean and std those of its training, and the classes in the same order?"


_MANY_CLASSES = 0.1
"""Chance of at most this: half as much again is nothing still."""


def few_samples(labels: Tensor, classes: int) -> str:
    """A warning where classes have no sample among those calibrated on, whose classes are `labels` [N]."""
    absent = classes - len(labels.unique())
    if absent <= 0:
        return ""
    return (
        f"warning: {absent} of {classes} classes have no sample among the {len(labels)} that are calibrated on, "
        "so that weights which only they need look useless; calibrate on more samples"
    )


def zero_weights(dense: MacReport, masked: MacReport) -> str:
    """What of the pruned multiply-adds were no work, for the weights were zero in the network given."""
    share = dense.macs_zero / max(dense.macs_dense, 1)
    if share < _SHOWN:
        return ""
    pruned, zero = (part / dense.macs_dense for part in (dense.macs_dense - masked.macs, dense.macs_zero - masked.macs_zero))
    return (
        f"{share:.1%} of the multiply-adds are with weights that are zero in the network given; "
        f"of the {pruned:.1%} that are pruned, {zero:.1%} are such and saved nothing"
    )


_SHOWN = 0.0005
"""The least fraction that shows in a percentage of one decimal."""


def saved(config: PruneConfig, pruned: Pruned, dense: MacReport, masked: MacReport) -> dict[str, Any]:
    """What the masks drop, for the manifest: `zero_weights` are multiply-adds of weights that were zero in the network given."""
    return {
        "ratios": {"asked": config.asked, "achieved": masked.pruned(config.kinds)},
        "macs": masked.to_json(),
        "conv_macs_kept": masked.conv_macs / max(dense.conv_macs_dense, 1),
        "zero_weights": {"macs_dense": dense.macs_zero, "macs_pruned": dense.macs_zero - masked.macs_zero},
        "left_dense": [{"name": s.name, "reason": s.reason} for s in pruned.skipped],
    }


def shortfall(config: PruneConfig, pruned: Pruned, report: MacReport) -> str:
    """Why clearly less was pruned than asked; empty where it was not, or where the request spares some layers itself."""
    asked = 1 - prod(1 - ratio for ratio in config.asked.values())
    missing = asked - (1 - report.conv_macs / max(report.conv_macs_dense, 1))
    chosen = any(part.per_layer or part.include or part.exclude for part in (config.ffp, config.fwp))
    if missing < _CLEARLY or chosen or config.fwp.pointwise == "exempt":
        return ""
    names = {skipped.name for skipped in pruned.skipped}
    dense = sum(layer.macs for layer in report.layers if layer.name in names) / report.conv_macs_dense
    causes = [f"{dense:.1%} are in layers left dense"] if dense else []
    if missing - asked * dense >= _CLEARLY:
        whole = any(part.scope in ("kernel", "group", "channel") for part in config.parts)
        one_by_one = "each channel or kernel drops whole blocks or taps and keeps at least one"
        causes.append(one_by_one if whole else "of every layer some stays, so that none is cut off")
    return f"{asked - missing:.1%} of the convolution multiply-adds are pruned, not {asked:.1%}: {'; '.join(causes)}"


_CLEARLY = 0.02
"""Fraction of the multiply-adds below which a difference is that of whole taps and blocks."""
