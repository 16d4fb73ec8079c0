"""`fineprune sensitivity`."""

from pathlib import Path
from typing import Any

import click

from .options import check_named, data_options, device_option, json_option, model_options, open_data, open_network, warn_random
from .pruning_options import level_option, levels_of_options, ranking_options, ranking_settings
from .sections import CALIBRATION, RESULT, SEED, TARGET, Command, stack


@click.command(cls=Command, short_help="Show what each layer costs when it is pruned: accuracy, milliseconds.")
@model_options
@data_options
@ranking_options
@stack(
    level_option,
    click.option("--int8", is_flag=True, help="Time layers in eight-bit integers; weights are then dropped by quads."),
    click.option("--times/--no-times", default=True, show_default=True, help="Time every layer at every level on this machine."),
    section=TARGET,
)
@stack(
    click.option("--samples", type=int, default=1024, show_default=True, help="Calibrate on so many training images."),
    click.option("--measured", type=int, help="Compare answers on so many validation images (default: 512, of large ones 128)."),
    click.option("--reconstruct/--no-reconstruct", default=True, show_default=True, help="Refit the kept weights of each layer."),
    click.option("--seed", type=SEED, default=0, show_default=True, help="The seed of the choice of samples."),
    section=CALIBRATION,
)
@device_option
@stack(
    click.option("--output", required=True, type=click.Path(path_type=Path), help="Keep all figures in this JSON file, and go on from it."),
    click.option("--plot", type=click.Path(path_type=Path), help="Draw them in this file (.png or .svg)."),
    json_option,
    section=RESULT,
)
def sensitivity(as_json: bool, output: Path, plot: Path | None, device: str, **options: Any) -> None:
    """Prune one layer of --model at a time, at several levels, and show what that costs on --data and how long the layer then takes.

    Run it again to resume. `fineprune compress --target-latency` chooses a level for each layer by the same figures.
    """
    from fineprune.common.progress import Bars
    from fineprune.compressor.config import prune_config
    from fineprune.compressor.reconstruct.run import ReconstructConfig
    from fineprune.compressor.search.levels import levels_of

    from ..pictures import check_picture, write_picture
    from ..search.explore import check_json_target, explored
    from ..search.picture import sensitivity_figure
    from ..search.target import Target
    from .render import print_json, print_sensitivity, say

    if plot is not None:
        check_picture(plot)
    check_json_target(output)
    ranking = ranking_settings(options)
    if options["int8"] and ranking["fwp"]["unit"] is None:
        ranking["fwp"]["unit"] = "quad"
    config = prune_config(ranking["preset"] or "obs", ffp=ranking["ffp"], fwp=ranking["fwp"])
    target = Target(int8=options["int8"], levels=levels_of(levels_of_options(options)))
    check_named(options)
    warn_random(options)
    data = open_data(options)
    network = open_network(options, data)
    settings = {"config": config, "target": target, "refit": ReconstructConfig() if options["reconstruct"] else None}
    counts = {name: options[name] for name in ("samples", "measured", "seed", "times")}
    facts = explored(network.model, data, settings, output=output, device=device, progress=Bars(), **counts)
    if plot is not None:
        write_picture(sensitivity_figure(facts), plot)
    if as_json:
        print_json(facts)
        return
    print_sensitivity(facts)
    say(f"wrote {' and '.join(str(path) for path in (output, plot) if path)}")
