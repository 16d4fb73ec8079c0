"""`fineprune compare`."""

from pathlib import Path

import click

from . import hints
from .options import json_option
from .sections import Command


@click.command(cls=Command, short_help="Show bundles side by side.")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--bench",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Show the latencies in this file, too, which `fineprune bench --json` printed: one for each bundle, in their order (repeatable).",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write an HTML page, too: with a figure, and with every layer.")
@json_option
def compare(bundles: tuple[Path, ...], bench: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Show BUNDLES side by side: latency, accuracy, multiply-adds, what is pruned, file size.

    BUNDLES is a list of folders that `fineprune compress` wrote, two or more.
    """
    from ..report import compare as rows_of
    from ..report import write_comparison
    from ..report.comparison import about, figures, names
    from .render import print_json, print_table, say
    from .report import html_target

    for bundle in bundles:
        hints.check_bundle(bundle, "compare")
    if output is not None:
        output = html_target(output)
    rows = rows_of(bundles, bench=bench)
    if output is not None:
        write_comparison(bundles, output, bench=bench)
    if as_json:
        print_json({"bundles": rows})
        return
    print_table(f"{len(rows)} bundles", ["", *names(rows)], figures(rows))
    say(about(rows))
    if output is not None:
        say(f"wrote {output}")
