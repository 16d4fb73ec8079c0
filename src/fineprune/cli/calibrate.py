"""`fineprune calibrate`."""

from pathlib import Path
from typing import Any

import click

from .options import calibration_options, data_options, device_option, model_options, open_data, open_network, prune_options, prune_settings


@click.command()
@model_options
@data_options
@prune_options
@calibration_options
@device_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of samples and of ties.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for the statistics.")
def calibrate(output: Path, device: str, **options: Any) -> None:
    """Collect the statistics that `fineprune compress --statistics` selects masks by. Run it again to resume."""
    from ..calibrate.collect import CalibrationConfig
    from ..common.progress import Bars
    from ..compressor.prune import CalibrationRun, prune
    from ..models.training.device import resolve_device

    config = prune_settings(options)
    calibration = CalibrationConfig(samples=options["samples"], batch_size=options["calibration_batch_size"], seed=options["seed"])
    where = resolve_device(device)
    data = open_data(options)
    network = open_network(options, data)
    progress = Bars()
    run = CalibrationRun(
        source=data.train, input_shape=network.input_shape, config=calibration, device=where, folder=output, progress=progress
    )
    pruned = prune(network.model, config, run)
    for skipped in pruned.skipped:
        progress.log(f"left dense: {skipped.name}: {skipped.reason}")
    click.echo(f"wrote statistics of {len(data.train) if options['samples'] is None else options['samples']} samples to {output}")
