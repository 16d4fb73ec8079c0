"""`fineprune report`."""

from pathlib import Path

import click

from .sections import Command


@click.command(cls=Command, short_help="Draw a bundle as one HTML page.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Path of the HTML file to write (default: BUNDLE.html).")
@click.option(
    "--bench", type=click.Path(path_type=Path), help="Show the latencies in this file, too, which `fineprune bench --json` printed."
)
def report(bundle: Path, output: Path | None, bench: Path | None) -> None:
    """Draw BUNDLE as one HTML page: its accuracy, its multiply-adds by layer, where it keeps blocks, and its fine-tuning.

    BUNDLE is a folder that `fineprune compress` wrote.
    """
    from fineprune.common.errors import UsageError
    from fineprune.common.files import check_writable, read_json

    from ..manifest import check_latencies
    from ..report import write_report
    from .render import say

    output = output or Path(f"{bundle}.html")
    if output.is_dir() or (output.exists() and output.suffix != ".html"):
        raise UsageError(f"{output} exists and is not named as an HTML file; give another name with --output")
    if bench is not None and not bench.is_file():
        raise UsageError(f"there is no file {bench}; write it by `fineprune bench {bundle} --json`")
    check_writable(output)
    latencies = read_json(bench) if bench else None
    if bench:
        check_latencies(latencies, bench)
    write_report(bundle, output, bench=latencies)
    say(f"wrote {output}")
