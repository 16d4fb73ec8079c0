"""`fineprune compress`."""

from pathlib import Path
from typing import Any

import click

from fineprune.common.errors import RunError

from .options import (
    bundle_argument,
    check_named,
    data_options,
    device_option,
    json_option,
    model_options,
    open_data,
    open_network,
    open_network_and_data,
    warn_random,
)
from .pruning_options import calibration_options, prune_options, prune_settings, schedule_options, schedule_settings, target_options
from .sections import CALIBRATION, RESULT, TRAINING, Command, stack
from .training_options import distill_options, training_options, training_settings


@click.command(cls=Command, short_help="Prune and fine-tune a trained network into a bundle.")
@bundle_argument
@model_options
@data_options
@prune_options
@target_options
@schedule_options
@calibration_options
@stack(
    click.option(
        "--statistics",
        type=click.Path(path_type=Path),
        help="Use the statistics of `fineprune calibrate` in this folder instead of new ones.",
    ),
    section=CALIBRATION,
)
@training_options(
    **{"epochs": "10", "batch-size": "128", "optimizer": "sgd", "lr": "0.02", "momentum": "0.9", "weight-decay": "0.0005"},
    **{"schedule": "cosine", "precision": "auto"},
)
@distill_options
@stack(
    click.option(
        "--reconstruct/--no-reconstruct",
        default=None,
        help="Refit the kept weights layer by layer, without labels, before the fine-tuning (default: where --epochs 0 leaves that out).",
    ),
    click.option("--compare-dense", is_flag=True, help="Fine-tune the dense network in the same way, too, and report its accuracy beside."),
    section=TRAINING,
)
@device_option
@stack(
    click.option(
        "--output",
        required=True,
        type=click.Path(path_type=Path),
        help="Write the bundle into this folder, where `fineprune export` reads it.",
    ),
    json_option,
    section=RESULT,
)
def compress(as_json: bool, output: Path, device: str, **options: Any) -> None:
    """Prune --model with --checkpoint on --data: calibrate, mask, fine-tune, and write a bundle. Run it again to resume.

    BUNDLE is a folder that this command wrote before: in the place of --model it keeps its masks and gets more on top, on its own data
    where --data is not given. An ONNX file in its place is a network with its weights, of which no code is needed.

    The training options belong to the fine-tuning; --epochs 0 leaves it out.
    """
    from fineprune.calibrate.collect import CalibrationConfig
    from fineprune.common.files import check_writable
    from fineprune.common.processes import joined
    from fineprune.common.progress import Bars
    from fineprune.compressor.bundle import check_target

    from ..compression import compress_network
    from ..job import Asked
    from ..networks import load_arguments, named_data
    from ..trust import named_again
    from .render import print_compression, print_json, say

    asked = Asked(
        **prune_settings(options),
        prune_schedule=schedule_settings(options),
        reconstruct=options["reconstruct"],
        finetune=training_settings(options),
        calibration=CalibrationConfig(samples=options["samples"], batch_size=options["calibration_batch_size"], seed=options["seed"]),
        measured=options["statistics"] is not None,
    )
    job = asked.job(compare_dense=options["compare_dense"], device=device)
    check_target(output)
    check_writable(output)
    check_named(options)
    if job.schedule is None or not job.schedule.while_training:  # else an untrained network is one that is pruned on the fly
        warn_random(options)
    if options["bundle"] is None:
        data = open_data(options)
        network = open_network(options, data)
    else:
        network, given_data = open_network_and_data(options)
        data = given_data or named_data(network)
    given: dict[str, Any] = {"spec": network.spec, "before": network.bundle, "statistics": options["statistics"], "output": output}
    with joined() as group:
        bundle = compress_network(network.model, data, job, **given, progress=group.speaker(Bars()))
    if not group.first:
        return
    if as_json:
        print_json(bundle.facts)
    else:
        print_compression(bundle.facts)
        again = named_again(network.spec, load_arguments(data.to_json()))
        say(f"wrote {output}; next: fineprune export {output}{again} --output {output}.onnx")
    if job.target is not None and not bundle.facts["search"]["end"]["kept"]:
        raise RunError(f"{output} was written, but does not keep the target ({job.target.text}); the lines above say why")
