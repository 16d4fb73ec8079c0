"""`fineprune macs`."""

from typing import Any

import click

from .options import bundle_argument, data_options, input_option, json_option, model_options, open_network, open_optional_data


@click.command()
@bundle_argument
@model_options
@data_options
@input_option
@json_option
def macs(as_json: bool, **options: Any) -> None:
    """Count multiply-adds of BUNDLE (exactly, under its masks) or of --model, per layer and in total."""
    from ..compressor.macs import count_macs
    from .render import print_json, print_macs

    data = open_optional_data(options)
    if data is None and options["bundle"] is None and options["input_shape"] is None:
        options["input_shape"] = _native_shape(options["model"])
    network = open_network(options, data)
    report = count_macs(network.model, network.input_shape)
    if as_json:
        print_json({"model": network.spec.to_json() if network.spec else None, **report.to_json()})
    else:
        print_macs(report, str(options["bundle"] or options["model"]))


def _native_shape(model: str | None) -> str | None:
    """The size that a named network was designed for: CIFAR for our own, ImageNet for torchvision's."""
    from ..models.zoo import names

    if model is not None and model.startswith("torchvision:"):
        return "3x224x224"
    return "3x32x32" if model in names() else None
