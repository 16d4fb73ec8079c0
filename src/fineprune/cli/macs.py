"""`fineprune macs`."""

import contextlib
from typing import TYPE_CHECKING, Any

import click

from .options import bundle_argument, check_named, data_options, input_option, json_option, model_options, open_network, open_optional_data
from .sections import Command

if TYPE_CHECKING:
    from fineprune.compressor.macs import MacReport
    from fineprune.models.data import ImageData

    from ..networks import Network


@click.command(cls=Command, short_help="Count the multiply-adds of each layer.")
@bundle_argument
@model_options
@data_options
@input_option
@json_option
def macs(as_json: bool, **options: Any) -> None:
    """Count the multiply-adds of BUNDLE (exactly, under its masks) or of --model, by layer and in total.

    BUNDLE is a folder that `fineprune compress` wrote.
    """
    from .render import print_json, print_macs

    check_named(options)
    data = open_optional_data(options)
    if data is None and options["bundle"] is None and options["input_shape"] is None:
        options["input_shape"] = _native_shape(options["model"])
    network, report = _counted(options, data)
    if as_json:
        print_json({"model": network.spec.to_json() if network.spec else None, **report.to_json()})
    else:
        print_macs(report, str(options["bundle"] or options["model"]))


def _counted(options: dict[str, Any], data: "ImageData | None") -> "tuple[Network, MacReport]":
    """The network and its counts. Without weights to load nothing needs to be computed: shapes on the meta device tell."""
    import torch

    from fineprune.common.errors import FinepruneError
    from fineprune.compressor.macs import count_macs

    if options["bundle"] is None and options["checkpoint"] is None and _native_shape(options["model"]) is not None:
        # A few networks compute with numbers while they are built; they, and those that fail anyway, go the long way.
        with contextlib.suppress(FinepruneError), torch.device("meta"):
            network = open_network(options, data)
            return network, count_macs(network.model, network.input_shape)
    network = open_network(options, data)
    return network, count_macs(network.model, network.input_shape)


def _native_shape(model: str | None) -> str | None:
    """The size that a named network was designed for: CIFAR for our own, ImageNet for torchvision's."""
    from fineprune.models.zoo import names

    if model is not None and model.startswith("torchvision:"):
        return "3x224x224"
    return "3x32x32" if model in names() else None
