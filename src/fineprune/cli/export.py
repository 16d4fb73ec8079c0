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
from .sections import Command


@click.command(cls=Command, short_help="Write a bundle as an ONNX file and check the file.")
@bundle_argument
@model_options
@data_options
@input_option
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Path of the ONNX file to write.")
@click.option("--plain", is_flag=True, help="Write standard operators only: no model-local functions, nothing packed.")
@click.option(
    "--parity-samples",
    type=int,
    default=256,
    show_default=True,
    help="Compare the file with PyTorch on so many real images (0: do not compare).",
)
@json_option
def export(as_json: bool, output: Path, plain: bool, parity_samples: int, **options: Any) -> None:
    """Write BUNDLE (or --model with --checkpoint) as an ONNX file and check the file against PyTorch on real images.

    BUNDLE is a folder that `fineprune compress` wrote.
    """
    from fineprune.common.progress import Bars

    from ..deployment import check_onnx_target, export_network, real_samples
    from .render import print_json, print_parity, say

    check_onnx_target(output)
    check_named(options)
    warn_random(options)
    network, _ = open_network_and_data(options)
    samples = real_samples(network, parity_samples) if parity_samples and network.data is not None else None
    exported = export_network(network, output, plain=plain, samples=samples, progress=Bars())
    facts = exported.to_json()
    if as_json:
        print_json(facts)
        return
    if facts["parity"]:
        print_parity(facts["parity"])
    report = exported.report
    masked = sum(layer.macs < layer.macs_dense for layer in report.layers)
    say(f"wrote {output}: {report.bytes / 1e6:.3f} MB, {masked} masked convolutions, opset {report.opset}")
