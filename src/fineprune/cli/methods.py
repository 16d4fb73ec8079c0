"""`fineprune methods`."""

import click

from .sections import Command


@click.command(cls=Command, short_help="List the pruning methods known by name.")
def methods() -> None:
    """List the pruning methods that --ffp-criterion and --fwp-criterion know by name.

    It says what each ranks, and what it reads: weights alone, images, or their labels, too.
    """
    from fineprune.compressor.criteria import criteria

    from .render import print_table

    rows = [
        [
            method.name,
            f"--{method.unit.kind}-criterion",
            f"{method.unit.name}s",
            ", ".join(method.scopes),
            "weights" if method.collects is None else "labels" if method.reads_labels else "images",
            method.summary,
        ]
        for method in criteria()
    ]
    print_table("pruning methods", ["name", "option", "ranks", "scopes", "reads", "by"], rows)
