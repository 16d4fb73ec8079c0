"""`fineprune front`."""

from pathlib import Path
from typing import Any

import click

from .compression_options import compress_settings, compression_options, open_both
from .options import check_named, json_option, warn_random
from .pruning_options import several_options
from .sections import RESULT, Command, stack


@click.command(cls=Command, short_help="Compress in several ways, and show what each keeps by its latency.")
@several_options
@compression_options(epochs=2)
@stack(
    click.option("--int8/--no-int8", default=True, show_default=True, help="Time everything in eight-bit integers, too."),
    click.option("--batch", type=int, default=1, show_default=True, help="Time so many images at once."),
    click.option("--threads", type=int, default=1, show_default=True, help="Time on so many threads."),
    click.option("--rounds", type=int, default=25, show_default=True, help="Time in so many rounds; in each, all files take turns."),
    click.option(
        "--output", required=True, type=click.Path(path_type=Path), help="Keep all points and front.json in this folder, and go on from it."
    ),
    click.option("--plot", type=click.Path(path_type=Path), help="Draw accuracy by latency in this file (.png or .svg)."),
    json_option,
    section=RESULT,
)
def front(as_json: bool, output: Path, plot: Path | None, device: str, int8: bool, **options: Any) -> None:
    """Compress --model with --checkpoint on --data at several ratios, time all results beside each other, and show the Pareto front.

    Run it again to resume, or with further ratios or units to add points. `fineprune compress --front FOLDER/front.json --point N` makes
    the compression of a point again, with more epochs, say.
    """
    from fineprune.common.progress import Bars
    from fineprune.export.benchmark import BenchmarkConfig

    from ..asked import Asked
    from ..pareto.front import EPOCHS, PRUNE, timing
    from ..pareto.picture import front_figure
    from ..pareto.sweep import Sweep, wanted
    from ..pictures import check_picture, write_picture
    from .render import print_front, print_json, say

    if plot is not None:
        check_picture(plot)
    compress, finetune = compress_settings(options)
    asked = Asked.of(compress, {"epochs": EPOCHS, **finetune})
    several = wanted(asked, options["ratios"] or PRUNE, options["units"])
    config = BenchmarkConfig(batch_sizes=(options["batch"],), threads=(options["threads"],), rounds=options["rounds"])
    check_named(options)
    warn_random(options)
    network, data = open_both(options)
    how: dict[str, Any] = {"asked": asked, "folder": output, "config": timing(config), "int8": int8, "device": device}
    facts = Sweep(model=network.model, spec=network.spec, data=data, **how, progress=Bars()).run(several)
    if plot is not None:
        write_picture(front_figure(facts), plot)
    if as_json:
        print_json(facts)
        return
    print_front(facts)
    say(f"wrote {output}/front.json{f' and {plot}' if plot else ''}; next: fineprune compress --front {output}/front.json --point N")
