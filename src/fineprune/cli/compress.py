"""`fineprune compress`."""

from pathlib import Path
from typing import Any

import click

from .options import (
    calibration_options,
    data_options,
    device_option,
    json_option,
    model_options,
    open_data,
    open_network,
    prune_options,
    prune_settings,
    training_options,
    training_settings,
)


@click.command()
@model_options
@data_options
@prune_options
@calibration_options
@click.option("--statistics", type=click.Path(path_type=Path), help="Statistics of `fineprune calibrate` instead of a new calibration.")
@training_options
@click.option("--compare-dense", is_flag=True, help="Fine-tune the dense network alike and report it beside.")
@device_option
@json_option
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for the bundle.")
def compress(as_json: bool, output: Path, device: str, **options: Any) -> None:
    """Prune --model with --checkpoint on --data: calibrate, mask, fine-tune, write a bundle. Run it again to resume.

    The training options are those of the fine-tuning; --epochs 0 leaves it out.
    """
    from ..calibrate.collect import CalibrationConfig
    from ..common.progress import Bars
    from ..compression import Job, compress_network, finetune_config
    from ..compressor.bundle import check_target
    from .render import print_compression, print_json

    check_target(output)
    progress = Bars()
    job = Job(
        config=prune_settings(options),
        preset=options["preset"],
        calibration=CalibrationConfig(samples=options["samples"], batch_size=options["calibration_batch_size"], seed=options["seed"]),
        finetune=finetune_config(**training_settings(options)),
        compare_dense=options["compare_dense"],
        device=device,
    )
    data = open_data(options)
    network = open_network(options, data)
    if options["checkpoint"] is None:
        progress.log("warning: no --checkpoint, so the weights are random; train the network first (fineprune train)")
    bundle = compress_network(
        network.model, data, job, spec=network.spec, statistics=options["statistics"], output=output, progress=progress
    )
    if as_json:
        print_json(bundle.facts)
    else:
        print_compression(bundle.facts)
        click.echo(f"wrote {output}; next: fineprune export {output} --output {output}.onnx")
