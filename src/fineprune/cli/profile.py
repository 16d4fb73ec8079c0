"""`fineprune profile`."""

from pathlib import Path
from typing import Any

import click

from .options import check_named, data_options, input_option, json_option, model_options, open_network, open_optional_data
from .pruning_options import levels_of_options, machine_options
from .sections import RESULT, TARGET, Command, stack


@click.command(cls=Command, short_help="Time each layer at each level on this machine, for a search elsewhere.")
@click.argument("network", required=False)
@model_options
@data_options
@input_option
@machine_options
@stack(
    click.option("--fwp-unit", metavar="NAME", help="What weights go together: weight, pair, quad or row (default: quad with --int8)."),
    section=TARGET,
)
@stack(
    click.option("--output", required=True, type=click.Path(path_type=Path), help="Write the times into this JSON file."),
    json_option,
    section=RESULT,
)
def profile(as_json: bool, network: str | None, output: Path, fwp_unit: str | None, **options: Any) -> None:
    """Time every layer of NETWORK (or --model) in the engine on this machine, dense and with weights dropped, one thread.

    NETWORK is a name or a file, as --model takes it. Take what is written to where there are data:
    `fineprune compress --target-latency 2.5ms --times FILE` searches for this machine there.
    """
    from fineprune.common.errors import UsageError
    from fineprune.common.progress import Bars

    from ..search.explore import profile as measure
    from .render import print_json, print_profile, say

    if network is not None and options["model"] is not None:
        raise UsageError(f"the network is {network} or --model {options['model']}; give one of the two")
    options["model"] = options["model"] or network
    check_named(options)
    data = open_optional_data(options)
    opened = open_network(options, data)
    settings: dict[str, Any] = {"int8": bool(options["int8"]), "threads": options["threads"] or 1, "batch": options["batch"] or 1}
    times = measure(
        opened.model,
        opened.input_shape,
        data=data,
        fwp={} if fwp_unit is None else {"unit": fwp_unit},
        levels=levels_of_options(options),
        output=output,
        progress=Bars(),
        **settings,
    )
    if as_json:
        print_json(times.to_json())
        return
    print_profile(times)
    say(f"wrote {output}; next: fineprune compress --target-latency TIME --times {output}")
