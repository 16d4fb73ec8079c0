"""`fineprune report`."""

from pathlib import Path
from typing import Any

import click

from .sections import Command


@click.command(cls=Command, short_help="Draw a bundle as one HTML page.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Path of the HTML file to write (default: BUNDLE.html).")
@click.option(
    "--bench",
    type=click.Path(path_type=Path),
    help="Show the latencies in this file, too, which `fineprune bench --json` printed, and with --layers those of layers.",
)
@click.option(
    "--onnx",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Show the size of this exported file, of float32 or of int8, and what int8 cost (repeatable).",
)
@click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Show the statistics in this folder as maps beside the masks; `fineprune calibrate` wrote it.",
)
@click.option("--sensitivity", type=click.Path(path_type=Path), help="Show the curves in this file, which `fineprune sensitivity` wrote.")
@click.option("--front", type=click.Path(path_type=Path), help="Show the Pareto front in this file or folder of `fineprune front`.")
def report(bundle: Path, output: Path | None, **sources: Any) -> None:
    """Draw BUNDLE as one HTML page: latency, accuracy, multiply-adds and file size, what became of each layer, its masks, how it was made.

    BUNDLE is a folder that `fineprune compress` wrote. The page needs nothing beside it: no network access, no other files.
    """
    from ..report import write_report
    from .render import say

    output = html_target(output or Path(f"{bundle}.html"))
    write_report(bundle, output, **sources)
    say(f"wrote {output}")


def html_target(output: Path) -> Path:
    """`output`, where an HTML file may be written; UsageError or RunError where not."""
    from fineprune.common.errors import UsageError
    from fineprune.common.files import check_writable

    if output.is_dir() or (output.exists() and output.suffix != ".html"):
        raise UsageError(f"{output} exists and is not named as an HTML file; give another name with --output")
    check_writable(output)
    return output
