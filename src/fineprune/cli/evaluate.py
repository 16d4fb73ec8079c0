"""`fineprune eval`."""

from typing import Any

import click

from .options import (
    bundle_argument,
    check_named,
    data_options,
    device_option,
    json_option,
    model_options,
    open_network_and_data,
    warn_random,
)
from .sections import Command


@click.command("eval", cls=Command, short_help="Measure the accuracy and the loss.")
@bundle_argument
@model_options
@data_options
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train"]),
    default="test",
    show_default=True,
    help="Which part of the data to measure on.",
)
@click.option("--batch-size", type=int, help="How many images to compute at a time.  [default: 256, fewer of large images]")
@device_option
@json_option
def evaluate(as_json: bool, split: str, batch_size: int | None, device: str, **options: Any) -> None:
    """Measure the accuracy and the loss of BUNDLE (on its own data, unless --data is given), or of --model with --checkpoint.

    BUNDLE is a folder that `fineprune compress` wrote.
    """
    from fineprune.common.errors import UsageError
    from fineprune.common.progress import Bars
    from fineprune.models.training.evaluate import evaluate as measure

    from ..claims import chance_level
    from ..networks import named_data, resized
    from .render import print_json, say

    check_named(options)
    warn_random(options)
    if options["bundle"] is None and options["data"] is None:
        raise UsageError("no data set; give --data (digits, cifar10, imagefolder:ROOT, ...)")
    network, data = open_network_and_data(options)
    data = data or named_data(network)
    if data.input_shape != network.input_shape:
        want, got = ("x".join(map(str, s)) for s in (network.input_shape, data.input_shape))
        remedy = resized(network.input_shape, data.input_shape)
        raise UsageError(f"the network takes inputs of {want}, {data.spec} has {got}; give {remedy} or other data")
    images, progress = getattr(data, split), Bars()
    result = measure(network.model, images, batch_size=batch_size, device=device, progress=progress, description=f"evaluating {split}")
    if warning := chance_level(result.accuracy, images.labels):
        progress.log(warning)
    if as_json:
        print_json({"split": split, "data": data.spec, **result.to_json()})
    else:
        top5 = "" if result.top5 is None else f", top-5 {result.top5:.2%}"
        say(f"{split} accuracy {result.accuracy:.2%}{top5}, loss {result.loss:.4f}, {result.samples} images of {data.spec}")
