"""The commands, one module each; they import click only, and the work when it starts."""

import click

from .. import __version__
from .bench import bench
from .calibrate import calibrate
from .compare import compare
from .compress import compress
from .evaluate import evaluate
from .export import export
from .front import front
from .macs import macs
from .methods import methods
from .models import models
from .plan_training import plan_training
from .profile import profile
from .report import report
from .run import run
from .sensitivity import sensitivity
from .train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fineprune")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure (works anywhere on the line).")
def command(debug: bool) -> None:
    """Make a trained convolutional network several times faster on the CPU that will run it, and show what that cost.

    The two commands: `fineprune compress` makes a bundle of a trained network, `fineprune export` makes an ONNX file of the bundle.
    """


for _command in (
    *(compress, export, train, calibrate, sensitivity, profile, front, evaluate, macs, bench, report, compare, run),
    *(models, methods, plan_training),
):
    command.add_command(_command)
