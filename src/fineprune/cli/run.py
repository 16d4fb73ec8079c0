"""`fineprune run`."""

from pathlib import Path

import click

from .options import device_option, json_option, trust_option
from .sections import Command


@click.command(cls=Command, short_help="Run the whole pipeline that a recipe describes.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write everything into this folder (default: what the recipe names as `output`)."
)
@click.option("--force", is_flag=True, help="Run every stage again, even where its inputs are unchanged.")
@trust_option
@device_option
@json_option
def run(recipe: Path, output: Path | None, force: bool, trust: tuple[str, ...], device: str, as_json: bool) -> None:
    """Run the pipeline that RECIPE describes: train, calibrate, compress, export, verify and benchmark. Run it again to resume.

    RECIPE is a TOML file, such as recipes/demo.toml.
    """
    from fineprune.common.progress import Bars

    from ..pipeline import run as run_recipe
    from .render import print_bench, print_compression, print_json, print_parity, print_table, say

    summary = run_recipe(recipe, output=output, force=force, trust=trust, device=device, progress=Bars())
    if as_json:
        print_json(summary)
        return
    details = summary["details"]
    print_compression(details["compress"])
    if details.get("export", {}).get("parity"):
        print_parity(details["export"]["parity"])
    if details.get("bench"):
        print_bench(details["bench"])
    print_table("summary", ["", "dense", "compressed"], summary["table"])
    say(f"wrote {summary['folder']}/summary.json and report.html")
