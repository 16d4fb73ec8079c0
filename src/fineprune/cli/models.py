"""`fineprune models`."""

import click

from .sections import Command


@click.command(cls=Command, short_help="List the networks that are known by name.")
def models() -> None:
    """List the networks that --model knows by name, with their arguments."""
    from fineprune.models.zoo import accepted_by, names

    for name in names():
        click.echo(f"{name:<22} {' '.join(accepted_by(name))}")
    click.echo("\ntorchvision:NAME (every torchvision classifier), module.path:factory and file.py:factory (your own)")
