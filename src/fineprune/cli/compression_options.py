"""The options that every compression has, beside what names its ratios, and the settings that they become."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .options import data_options, device_option, given, model_options, open_data, open_network, open_network_and_data
from .pruning_options import calibration_options, prune_settings, schedule_options, schedule_settings
from .sections import TRAINING, stack
from .training_options import distill_options, training_options, training_settings

if TYPE_CHECKING:
    from fineprune.models.data import ImageData

    from ..networks import Network


def compression_options(epochs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Those of network, data, schedule, calibration and training; epochs: of the fine-tuning where none are given."""
    defaults = {"batch-size": "128", "optimizer": "sgd", "lr": "0.02", "momentum": "0.9", "weight-decay": "0.0005"}
    return stack(
        model_options,
        data_options,
        schedule_options,
        calibration_options,
        training_options(epochs=str(epochs), **defaults, schedule="cosine", precision="auto"),
        distill_options,
        stack(
            click.option(
                "--reconstruct/--no-reconstruct",
                default=None,
                help="Refit the kept weights layer by layer, without labels, before the fine-tuning (default: where --epochs 0 leaves "
                "that out).",
            ),
            section=TRAINING,
        ),
        device_option,
    )


def compress_settings(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a recipe would say in [compress] and in [finetune], from the options given."""
    options = given(options)
    compress = {name: options[name] for name in ("reconstruct", "samples", "calibration_batch_size", "seed")}
    compress["prune_schedule"] = schedule_settings(options)
    return prune_settings(options) | compress, training_settings(options)


def open_both(options: dict[str, Any]) -> "tuple[Network, ImageData]":
    """The network and its data: those of --data, or those that a bundle names."""
    from ..networks import named_data

    if options.get("bundle") is None:
        data = open_data(options)
        return open_network(options, data), data
    network, given_data = open_network_and_data(options)
    return network, given_data or named_data(network)
