"""`fineprune calibrate`."""

from pathlib import Path
from typing import Any

import click

from .options import check_named, data_options, device_option, model_options, open_data, open_network, warn_random
from .pruning_options import calibration_options, prune_options, prune_settings
from .sections import CALIBRATION, RESULT, SEED, Command, stack


@click.command(cls=Command, short_help="Collect the statistics that masks are chosen by.")
@model_options
@data_options
@prune_options
@calibration_options
@device_option
@stack(
    click.option(
        "--seed", type=SEED, default=0, show_default=True, help="The seed of the choice of samples, and of the order of equal scores."
    ),
    section=CALIBRATION,
)
@stack(
    click.option("--output", required=True, type=click.Path(path_type=Path), help="Write the statistics into this folder."), section=RESULT
)
def calibrate(output: Path, device: str, **options: Any) -> None:
    """Collect the statistics that `fineprune compress --statistics` chooses masks by. Run it again to resume."""
    from fineprune.calibrate.collect import CalibrationConfig
    from fineprune.calibrate.statistics import check_target
    from fineprune.common.files import check_writable
    from fineprune.common.processes import joined
    from fineprune.common.progress import Bars
    from fineprune.compressor.prune import prune
    from fineprune.models.training.device import resolve_device

    from ..asked import Asked
    from ..compression import calibration_run, working_network
    from ..unlabelled import check_criteria
    from .render import say

    config = Asked.of(prune_settings(options), {}).config
    calibration = CalibrationConfig(samples=options["samples"], batch_size=options["calibration_batch_size"], seed=options["seed"])
    where = resolve_device(device)
    kinds = [part.method.collects for part in config.parts if part.method.collects is not None]
    for kind in kinds:
        check_target(output / kind)
        check_writable(output / kind)
    check_named(options)
    warn_random(options)
    data = open_data(options)
    check_criteria(data, config)
    network = open_network(options, data)
    with joined() as group:
        progress = group.speaker(Bars())
        model = working_network(network.model, config, progress)
        pruned = prune(model, config, calibration_run(data, calibration, where, output, progress))
    if not group.first:
        return
    for skipped in pruned.skipped:
        progress.log(f"left dense: {skipped.name}: {skipped.reason}")
    if not kinds:
        say(f"these methods need no statistics, so {output} was not written; next: fineprune compress with the same options")
        return
    samples = min(options["samples"] or len(data.train), len(data.train))
    say(f"wrote statistics of {samples} samples to {output}; next: fineprune compress --statistics {output} with the same ratios")
