"""The options of a training, and the settings that they become."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import click

from fineprune.common.errors import UsageError

from .sections import RESEARCH, SEED, TRAINING, stack

policy_options = stack(
    click.option("--policy", metavar="NAME", help="What leaves samples out of epochs: none, fine-pruning, infobatch or random."),
    click.option(
        "--policy-arg",
        "policy_args",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change a setting of the policy, e.g. fraction=0.25 or order=easiest (repeatable).",
    ),
    section=RESEARCH,
)


qat_option = click.option(
    "--qat-epochs",
    type=int,
    metavar="N",
    help="How many of the last epochs compute on the grids of int8, so that `export --int8` loses less.",
)

distill_options = stack(
    click.option(
        "--distill",
        type=float,
        metavar="H",
        help="Learn from the dense network, too: the share of the loss in (0,1] that it teaches, e.g. 0.9; the labels have the rest.",
    ),
    click.option(
        "--temperature", type=float, metavar="T", help="By how much both networks' class scores are divided (4 where it is not given)."
    ),
    click.option(
        "--distill-features",
        "features",
        type=float,
        metavar="W",
        help="Match what layers give to what they give in the dense network, too, with this weight, e.g. 1.",
    ),
    click.option(
        "--distill-layer",
        "layers",
        multiple=True,
        metavar="NAME",
        help="Match this layer instead of the last one of each stage (repeatable).",
    ),
    section=TRAINING,
)


def training_options(**defaults: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a training; `defaults` are those shown in the help, for they differ between training and fine-tuning."""

    def option(name: str, kind: type, text: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        shown = f"{text}  [default: {defaults[name]}]" if name in defaults else text
        return click.option(f"--{name}", type=kind, help=shown, **settings)

    usual = stack(
        option("epochs", int, "How often to go through all training images."),
        option("batch-size", int, "How many images one step takes."),
        option("lr", float, "The learning rate at its highest."),
        option("optimizer", str, "What makes the steps: sgd, adam or adamw."),
        option("momentum", float, "The momentum of the steps (sgd only)."),
        option("weight-decay", float, "How strongly large weights are pulled towards zero."),
        option(
            "schedule",
            str,
            "How the learning rate falls: cosine, multistep, plateau, constant, or auto (when the validation loss no longer changes).",
        ),
        qat_option,
        click.option("--no-augment", is_flag=True, help="Train on the images as they are, neither shifted nor mirrored."),
        option("precision", str, "Which numbers to compute with: auto, float32, bfloat16 or float16."),
        option(
            "workers", int, "How many threads decode images that do not fit in memory; with a parameter server, how many workers it has."
        ),
        click.option(
            "--seed",
            type=SEED,
            default=0,
            show_default=True,
            help="The seed of all that is random: new weights, order, augmentation, chosen samples.",
        ),
        section=TRAINING,
    )
    research = stack(
        option("milestones", str, "After which epochs the learning rate drops (multistep only).", metavar="E1,E2"),
        option("gamma", float, "The factor of each drop of the learning rate (multistep and plateau only)."),
        click.option(
            "--auto-arg",
            "auto_args",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change a setting of the schedule auto: rule, interval, parts, threshold, ... (repeatable).",
        ),
        option("warmup-epochs", float, "Over how many epochs the learning rate rises at the start."),
        option("label-smoothing", float, "What share of each label is spread over all classes."),
        option("max-grad-norm", float, "Shorten a gradient whose L2 norm is larger than this."),
        policy_options,
        click.option("--trainer", help="How steps are made: plain, or by a parameter server with ssgd, asgd, dc-asgd or lc-asgd."),
        click.option(
            "--trainer-arg",
            "trainer_args",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change a setting of the parameter server: lam, mode, shards, engine=ray, address, ... (repeatable).",
        ),
        section=RESEARCH,
    )
    return stack(usual, research)


_TRAINING = (
    *("epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule", "gamma", "warmup_epochs"),
    *("label_smoothing", "max_grad_norm", "precision", "workers", "seed", "qat_epochs"),
)


_DISTILL = {"temperature": "--temperature", "features": "--distill-features", "layers": "--distill-layer"}
"""Options that go with --distill, by the fields that they set."""


def training_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of TrainConfig from the options given."""
    from fineprune.models.training.distributed.config import with_defaults

    settings = {key: options[key] for key in _TRAINING if options.get(key) is not None}
    if options.get("trainer") not in (None, "plain"):
        servers = {"workers": settings.pop("workers")} if "workers" in settings else {}
        servers |= typed_pairs("--trainer-arg", options["trainer_args"])
        settings = with_defaults({**settings, "asynchronous": {"algorithm": options["trainer"], **servers}})
    elif options.get("trainer_args"):
        raise UsageError("--trainer-arg belongs to a --trainer with a parameter server; name it, too")
    if options.get("no_augment"):
        settings["augment"] = False
    if options.get("auto_args"):
        settings["auto_lr"] = typed_pairs("--auto-arg", options["auto_args"])
    policy = policy_settings(options)
    if policy is not None:
        settings["policy"] = policy
    if options.get("distill") is not None:
        changed = {key: options[key] for key in _DISTILL if options[key] not in (None, ())}
        settings["distill"] = {"share": options["distill"], **changed}
    elif alone := [flag for key, flag in _DISTILL.items() if options.get(key) not in (None, ())]:
        raise UsageError(f"{alone[0]} belongs to --distill; give it, too")
    if options.get("milestones"):
        try:
            settings["milestones"] = tuple(int(text) for text in options["milestones"].split(","))
        except ValueError:
            raise UsageError(f"--milestones are epochs such as 10,15, got {options['milestones']!r}") from None
    return settings


def policy_settings(options: dict[str, Any]) -> dict[str, Any] | None:
    """A policy's name and parameters, or None where none is given."""
    if options.get("policy") is None:
        if options.get("policy_args"):
            raise UsageError("--policy-arg belongs to --policy; name the policy, too")
        return None
    parameters = typed_pairs("--policy-arg", options["policy_args"])
    if "name" in parameters:
        raise UsageError("--policy-arg gives parameters; the name belongs to --policy")
    return {"name": options["policy"], **parameters}


def typed_pairs(option: str, pairs: Iterable[str]) -> dict[str, Any]:
    """["fraction=0.25", "rescale=true", "max_drops=none"] -> {"fraction": 0.25, "rescale": True, "max_drops": None}."""
    words = {"true": True, "false": False, "none": None}
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"{option} is KEY=VALUE such as fraction=0.25, got {pair!r}")
        values[key] = words.get(text.lower(), text)
        for convert in (float, int):  # a whole number is one
            with contextlib.suppress(ValueError):
                values[key] = convert(text)
    return values
