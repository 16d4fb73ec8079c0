"""`fineprune train`."""

from pathlib import Path
from typing import Any

import click

from .options import data_options, device_option, json_option, model_options, model_spec, open_data, training_options, training_settings


@click.command()
@model_options
@data_options
@training_options
@device_option
@json_option
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for model.safetensors and training.json.")
def train(as_json: bool, output: Path, device: str, **options: Any) -> None:
    """Train --model on --data from scratch (or from --checkpoint) with the plain trainer. Run it again to resume."""
    from ..common.progress import Bars
    from ..models.training.config import TrainConfig
    from ..training import train_network
    from .render import print_json

    config = TrainConfig(**training_settings(options))
    spec = model_spec(options["model"], options["model_args"])
    data = open_data(options)
    facts = train_network(spec, data, config, output=output, checkpoint=options["checkpoint"], device=device, progress=Bars())
    if as_json:
        print_json(facts)
    else:
        accuracy = facts["accuracy"]
        held_out = f", {accuracy['split']} accuracy {accuracy['value']:.2%}" if accuracy["value"] is not None else ""
        click.echo(f"wrote {facts['checkpoint']}: best of {len(facts['history'])} epochs was {facts['best_epoch']}{held_out}")
