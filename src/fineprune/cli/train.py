"""`fineprune train`."""

from pathlib import Path
from typing import Any

import click

from fineprune.common.errors import UsageError

from .options import check_named, data_options, device_option, json_option, model_options, model_spec, open_data
from .sections import RESULT, Command, stack
from .training_options import training_options, training_settings


@click.command(cls=Command, short_help="Train a network on a data set.")
@model_options
@data_options
@training_options(
    **{"epochs": "20", "batch-size": "128", "optimizer": "sgd", "lr": "0.1", "momentum": "0.9", "weight-decay": "0.0001"},
    **{"schedule": "cosine", "precision": "auto"},
)
@device_option
@stack(
    click.option(
        "--output", required=True, type=click.Path(path_type=Path), help="Write model.safetensors and training.json into this folder."
    ),
    click.option(
        "--suspects", type=int, metavar="N", help="Report the N training samples that look most wrong, as suspects.csv and as pictures."
    ),
    json_option,
    section=RESULT,
)
def train(as_json: bool, output: Path, device: str, suspects: int | None, **options: Any) -> None:
    """Train --model on --data from scratch (or from --checkpoint, or the weights of an ONNX file). Run it again to resume."""
    from fineprune.common.processes import joined
    from fineprune.common.progress import Bars
    from fineprune.models.training.config import TrainConfig

    from ..training import SUSPECTS, check_target, train_network
    from .render import print_json, say

    if suspects is not None and suspects < 1:
        raise UsageError(f"--suspects is at least 1, got {suspects}")
    config = TrainConfig(**training_settings(options), record_losses=suspects is not None)
    spec = model_spec(options["model"], options["model_args"])
    check_named(options)
    check_target(output)
    data = open_data(options)
    settings = {"checkpoint": options["checkpoint"], "device": device, "suspects": suspects or SUSPECTS, "progress": Bars()}
    with joined() as group:
        facts = train_network(spec, data, config, output=output, **settings)
    if not group.first:
        return
    if as_json:
        print_json(facts)
    else:
        accuracy = facts["accuracy"]
        held_out = f", {accuracy['split']} accuracy {accuracy['value']:.2%}" if accuracy["value"] is not None else ""
        say(f"wrote {facts['checkpoint']}: weights of epoch {facts['best_epoch']} of {len(facts['history'])}{held_out}")
        for path in facts["reports"]:
            say(f"wrote {path}")
