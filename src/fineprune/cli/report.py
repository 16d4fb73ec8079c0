"""`fineprune report`."""

from pathlib import Path

import click


@click.command(short_help="Draw a bundle as an HTML page.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="HTML file to write (default: BUNDLE.html).")
@click.option("--bench", type=click.Path(path_type=Path), help="Output of `fineprune bench --json`, to show latencies too.")
def report(bundle: Path, output: Path | None, bench: Path | None) -> None:
    """Draw BUNDLE as one HTML page: accuracy, multiply-adds by layer, where blocks are kept, fine-tuning."""
    from ..common.files import read_json
    from ..report import write_report

    output = output or Path(f"{bundle}.html")
    write_report(bundle, output, bench=read_json(bench) if bench else None)
    click.echo(f"wrote {output}")
