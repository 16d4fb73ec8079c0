"""`fineprune plan-training`."""

from typing import Any

import click

from fineprune.common.errors import UsageError

from .options import data_options, json_option, open_optional_data
from .sections import Command
from .training_options import policy_options, policy_settings


@click.command("plan-training", cls=Command, short_help="Predict what it saves to leave samples out.")
@policy_options
@click.option("--epochs", type=int, required=True, help="How many epochs the run has.")
@click.option("--samples", type=int, help="How many training samples there are, where --data is not given.")
@data_options
@click.option("--batch-size", type=int, default=128, show_default=True, help="How many images one step takes.")
@click.option("--epoch-seconds", type=float, help="How many seconds an epoch on all samples takes; then times are predicted, too.")
@click.option("--validation-seconds", type=float, default=0.0, show_default=True, help="How many seconds the validation of an epoch takes.")
@click.option(
    "--below-mean", type=float, default=0.75, show_default=True, help="What share of the losses lies below their mean (infobatch only)."
)
@json_option
def plan_training(as_json: bool, **options: Any) -> None:
    """Predict the time that --policy saves, from its schedule alone: nothing is trained, and no image is read."""
    from .render import print_json

    facts = plan(options)
    if as_json:
        print_json(facts)
        return
    click.echo(f"{facts['policy']['name']}: {', '.join(f'{k} {v}' for k, v in facts['policy'].items() if k != 'name')}")
    click.echo(
        f"prunes {facts['pruned_epochs']} of {facts['epochs']} epochs: {facts['visits']:,} of {facts['regular_visits']:,} sample visits"
    )
    thesis = "" if facts["thesis"] is None else f" (thesis formula {facts['thesis']:.2%})"
    click.echo(f"training time saved: {facts['saved']:.2%}{thesis}")
    if facts["seconds"] is not None:
        click.echo(f"{_duration(facts['regular_seconds'])} become {_duration(facts['seconds'])}")
    if facts["policy"]["name"] == "infobatch":
        click.echo(f"(if {options['below_mean']:.0%} of the losses are below the mean; the run itself will tell)")


def plan(options: dict[str, Any]) -> dict[str, Any]:
    """The prediction; UsageError for a policy that does not fit the run."""
    from fineprune.models.training.sampling.config import PolicyConfig
    from fineprune.models.training.sampling.policies import make_policy
    from fineprune.models.training.sampling.schedule import prunes
    from fineprune.models.training.sampling.time_model import predicted_saving, simulate, thesis_formula, trained_batches

    settings = policy_settings(options) or {"name": "fine-pruning"}
    epochs, batch_size, epoch_s, validation_s = (options[k] for k in ("epochs", "batch_size", "epoch_seconds", "validation_seconds"))
    if epochs < 1 or batch_size < 1:
        raise UsageError(f"--epochs and --batch-size are at least 1, got {epochs} and {batch_size}")
    if validation_s < 0 or (epoch_s is not None and epoch_s <= 0) or not 0 <= options["below_mean"] <= 1:
        raise UsageError("--epoch-seconds is above 0, --validation-seconds at least 0 and --below-mean in [0,1]")
    if validation_s and epoch_s is None:
        raise UsageError("--validation-seconds needs --epoch-seconds to be compared to")
    samples = _samples(options)
    config = make_policy(PolicyConfig.of(settings), samples=samples, epochs=epochs, seed=0, batch_size=batch_size).config
    visits = simulate(config, epochs=epochs, samples=samples, below_mean=options["below_mean"])
    batch_s = (epoch_s or 1.0) / trained_batches(samples, batch_size)
    saved = predicted_saving(visits, epochs=epochs, samples=samples, batch_size=batch_size, batch_s=batch_s, validation_s=validation_s)
    regular_s = None if epoch_s is None else epochs * (epoch_s + validation_s)
    return {
        "policy": config.to_json(),
        "epochs": epochs,
        "samples": samples,
        "pruned_epochs": sum(prunes(config, epoch, epochs) for epoch in range(epochs)),
        "visits": sum(visits),
        "regular_visits": epochs * samples,
        "visits_by_epoch": visits,
        "saved": saved,
        "thesis": thesis_formula(config, epochs=epochs),
        "regular_seconds": regular_s,
        "seconds": None if regular_s is None else regular_s * (1 - saved),
    }


def _samples(options: dict[str, Any]) -> int:
    data = open_optional_data(options)
    if (data is None) == (options["samples"] is None):
        raise UsageError("give either --samples or --data: the prediction needs the number of training samples")
    count = len(data.train) if data is not None else options["samples"]
    if count < 1:
        raise UsageError(f"--samples is at least 1, got {count}")
    return count


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
