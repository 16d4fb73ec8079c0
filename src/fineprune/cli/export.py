"""`fineprune export`."""

from pathlib import Path
from typing import Any

import click

from .options import (
    bundle_argument,
    check_named,
    data_options,
    input_option,
    json_option,
    model_options,
    open_network_and_data,
    warn_random,
)
from .sections import Command, stack

int8_options = stack(
    click.option("--int8", is_flag=True, help="Write eight-bit integers (QDQ), calibrated on training images, and say what they cost."),
    click.option("--int8-ranges", metavar="NAME", help="How the range of a tensor is chosen: mse, minmax or percentile.  [default: mse]"),
    click.option("--int8-images", type=int, help="How many training images calibrate.  [default: 256]"),
    click.option(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="Leave the layers that cost most in float32 until int8 costs at most so many points of accuracy on validation images.",
    ),
)


@click.command(cls=Command, short_help="Write a bundle as an ONNX file and check the file.")
@bundle_argument
@model_options
@data_options
@input_option
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Path of the ONNX file to write.")
@click.option("--dynamic-size", is_flag=True, help="Leave height and width of images free; for masks of weights alone (--ffp 0).")
@click.option("--plain", is_flag=True, help="Write standard operators only: no model-local functions, nothing packed.")
@click.option(
    "--parity-samples",
    type=int,
    default=256,
    show_default=True,
    help="Compare the file with PyTorch on so many real images (0: do not compare).",
)
@int8_options
@json_option
def export(as_json: bool, output: Path, plain: bool, dynamic_size: bool, parity_samples: int, **options: Any) -> None:
    """Write BUNDLE (or --model with --checkpoint) as an ONNX file and check the file against PyTorch on real images.

    BUNDLE is a folder that `fineprune compress` wrote.
    """
    from fineprune.common.errors import UsageError
    from fineprune.common.figures import size
    from fineprune.common.progress import Bars

    from ..deployment import check_onnx_target, export_int8, export_network, real_samples
    from ..int8 import Int8Export, cost_line
    from ..networks import named_data
    from .render import print_json, print_parity, say

    check_onnx_target(output)
    check_named(options)
    config = _int8_config(options)
    if config is not None and dynamic_size:
        raise UsageError("a file in int8 has images of one size; leave out --int8 or --dynamic-size")
    warn_random(options)
    network, data = open_network_and_data(options)
    data = data if config is None else data or named_data(network)
    job = None if config is None or data is None else Int8Export(config=config, data=data)
    samples = real_samples(network, parity_samples, data) if parity_samples and network.data is not None else None
    if job is None:
        exported = export_network(network, output, plain=plain, dynamic_size=dynamic_size, samples=samples, progress=Bars())
    else:
        exported = export_int8(network, output, job, plain=plain, samples=samples, progress=Bars())
    facts = exported.to_json()
    if as_json:
        print_json(facts)
        return
    if facts["parity"]:
        print_parity(facts["parity"], "ONNX Runtime" if exported.int8 else "PyTorch")
    if exported.int8:
        say(cost_line(exported.int8))
    report = exported.report
    masked = sum(layer.macs < layer.macs_dense for layer in report.layers)
    say(f"wrote {output}: {size(report.bytes)}, {masked} masked convolutions, opset {report.opset}")


def _int8_config(options: dict[str, Any]) -> Any:
    from fineprune.common.errors import UsageError

    from ..int8 import int8_config

    wanted = options.pop("int8")
    names = {"int8_ranges": "ranges", "int8_images": "images", "max_drop": "max_drop"}
    given = {names[option]: value for option in names if (value := options.pop(option)) is not None}
    if given and not wanted:
        raise UsageError("--int8-ranges, --int8-images and --max-drop belong to --int8; give that, too")
    return int8_config(given if wanted and given else wanted)
