"""Options that several commands share, and what they become. Nothing heavy is imported before a command runs."""

import contextlib
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..common.errors import UsageError

if TYPE_CHECKING:
    from ..compressor.config import PruneConfig
    from ..models.data import ImageData
    from ..models.zoo import ModelSpec
    from ..networks import Network

Command = TypeVar("Command", bound=Callable[..., Any])


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several click options as one decorator, in reading order."""
    return lambda function: functools.reduce(lambda inner, option: option(inner), reversed(options), function)


model_options = stack(
    click.option(
        "--model", metavar="NAME", help="Network: a name of `fineprune models`, torchvision:NAME, module.path:factory or file.py:factory."
    ),
    click.option(
        "--model-arg", "model_args", metavar="KEY=VALUE", multiple=True, help="Argument of the network, e.g. width=32 (repeatable)."
    ),
    click.option(
        "--checkpoint", metavar="FILE", type=click.Path(path_type=Path), help="Its weights: a state dict (.pt, .th, .safetensors)."
    ),
)
trust_option = click.option(
    "--trust", multiple=True, metavar="NAME", help="Allow your own code, files or folders that a bundle or recipe names (repeatable)."
)
bundle_argument = stack(click.argument("bundle", required=False, type=click.Path(path_type=Path)), trust_option)
input_option = click.option("--input", "input_shape", metavar="CxHxW", help="Input shape where the data don't say, e.g. 3x32x32.")
data_options = stack(
    click.option(
        "--data",
        metavar="SPEC",
        help="digits, cifar10[:ROOT], cifar100[:ROOT], fashion-mnist[:ROOT], imagefolder:ROOT, npz:FILE, or module:factory.",
    ),
    click.option(
        "--data-arg",
        "data_args",
        metavar="KEY=VALUE",
        multiple=True,
        help="validation=0.1, seed=0, image_size=224, crop=0.875, channels=3, mean=0.5,0.5,0.5, std=..., white=4095, classes=FILE, "
        "labels=FILE (repeatable).",
    ),
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")

prune_options = stack(
    click.option("--preset", default="taylor", show_default=True, help="taylor (one global threshold) or thesis (the source's ranking)."),
    click.option("--prune", "ratio", type=float, metavar="RATIO", help="Fraction of multiply-adds to prune, split as the preset does."),
    click.option("--ffp", "ffp_ratio", type=float, metavar="RATIO", help="Fraction of feature-map blocks to prune, in [0,1)."),
    click.option("--fwp", "fwp_ratio", type=float, metavar="RATIO", help="Fraction of weights to prune, in [0,1)."),
    click.option("--ffp-layer", multiple=True, metavar="GLOB=RATIO", help="Another FFP ratio for these layers (repeatable)."),
    click.option("--fwp-layer", multiple=True, metavar="GLOB=RATIO", help="Another FWP ratio for these layers (repeatable)."),
    click.option("--ffp-criterion", help="taylor, l2, l1 or apoz."),
    click.option("--ffp-scope", help="global, channel, layer or position."),
    click.option("--ffp-propagate", help="masked or dense: what deeper layers see while blocks are calibrated."),
    click.option("--fwp-criterion", help="taylor, wis, wis-signed or magnitude."),
    click.option("--fwp-scope", help="global, kernel, group, channel, filter or layer."),
    click.option("--fwp-share", help="With scope layer or global: drop a tap for one filter, a group or all of a channel."),
    click.option("--lanes", type=int, help="Filters in a group (scope or share `group`)."),
    click.option("--pointwise", help="1x1 kernels: rank over the channels of a filter (filter) or leave them (exempt)."),
    click.option("--include", multiple=True, metavar="GLOB", help="Prune only these layers (repeatable)."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these layers dense (repeatable)."),
)
calibration_options = stack(
    click.option("--samples", type=int, help="Calibrate on so many training samples, chosen by --seed (default: all)."),
    click.option("--calibration-batch-size", type=int, default=128, show_default=True),
)


policy_options = stack(
    click.option("--policy", metavar="NAME", help="Which samples an epoch visits: none (all), fine-pruning, infobatch or random."),
    click.option(
        "--policy-arg",
        "policy_args",
        metavar="KEY=VALUE",
        multiple=True,
        help="Its parameters, e.g. fraction=0.25 or order=easiest (repeatable).",
    ),
)


def training_options(**defaults: str) -> Callable[[Command], Command]:
    """The options of a training; `defaults` are those shown in the help, for they differ between training and fine-tuning."""

    def option(name: str, kind: type, text: str, **settings: Any) -> Callable[[Command], Command]:
        shown = f"{text}  [default: {defaults[name]}]" if name in defaults else text
        return click.option(f"--{name}", type=kind, help=shown, **settings)

    return stack(
        option("epochs", int, "Passes over the training images."),
        option("batch-size", int, "Images a step."),
        option("optimizer", str, "sgd, adam or adamw."),
        option("lr", float, "Peak learning rate."),
        option("momentum", float, "Of sgd."),
        option("weight-decay", float, "L2 penalty of the weights."),
        option("schedule", str, "cosine, multistep, plateau, constant or auto (drops when the validation loss no longer changes)."),
        option("milestones", str, "multistep: epochs after which the rate drops.", metavar="E1,E2"),
        option("gamma", float, "multistep, plateau: factor of each drop."),
        click.option(
            "--auto-arg", "auto_args", metavar="KEY=VALUE", multiple=True, help="auto: rule, interval, threshold, ... (repeatable)."
        ),
        option("warmup-epochs", float, "Linear rise to the learning rate at the start."),
        option("label-smoothing", float, "Share of the label spread over all classes."),
        option("max-grad-norm", float, "Clip the gradient to this L2 norm."),
        option("precision", str, "auto, float32, bfloat16 or float16."),
        policy_options,
        click.option("--no-augment", is_flag=True, help="Train on the images as they are."),
        click.option("--trainer", help="plain, or with a parameter server: ssgd, asgd, dc-asgd or lc-asgd (plain where it is not given)."),
        click.option(
            "--trainer-arg",
            "trainer_args",
            metavar="KEY=VALUE",
            multiple=True,
            help="Of the parameter server: lam, mode, shards, engine=ray, address, ... (repeatable).",
        ),
        option("workers", int, "With a parameter server, its workers; else threads that decode images which do not fit in memory."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of weights, order, augmentation and calibration samples."),
    )


_TRAINING = (
    *("epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule", "gamma", "warmup_epochs"),
    *("label_smoothing", "max_grad_norm", "precision", "workers", "seed"),
)


def training_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of TrainConfig from the options given."""
    from ..models.training.distributed.config import with_defaults

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


def prune_settings(options: dict[str, Any]) -> "PruneConfig":
    """The settings of both masks from the options given."""
    from ..compressor.config import prune_config

    if all(options[name] is None for name in ("ratio", "ffp_ratio", "fwp_ratio")) and not options["ffp_layer"] and not options["fwp_layer"]:
        raise UsageError("nothing to prune; give --prune, or --ffp and --fwp (fractions such as 0.3), or --ffp-layer and --fwp-layer")
    layers = {"include": tuple(options["include"]) or None, "exclude": tuple(options["exclude"]) or None}
    return prune_config(
        options["preset"],
        ratio=options["ratio"],
        ffp={
            "ratio": options["ffp_ratio"],
            "per_layer": layer_ratios("--ffp-layer", options["ffp_layer"]) or None,
            "criterion": options["ffp_criterion"],
            "scope": options["ffp_scope"],
            "propagate": options["ffp_propagate"],
            **layers,
        },
        fwp={
            "ratio": options["fwp_ratio"],
            "per_layer": layer_ratios("--fwp-layer", options["fwp_layer"]) or None,
            "criterion": options["fwp_criterion"],
            "scope": options["fwp_scope"],
            "share": options["fwp_share"],
            "lanes": options["lanes"],
            "pointwise": options["pointwise"],
            **layers,
        },
    )


def layer_ratios(option: str, pairs: Iterable[str]) -> dict[str, float]:
    """["layer3.*=0.2"] -> {"layer3.*": 0.2}."""
    ratios = {}
    for pair in pairs:
        pattern, _, value = pair.rpartition("=")
        try:
            ratios[pattern] = float(value)
        except ValueError:
            pattern = ""
        if not pattern:
            raise UsageError(f"{option} is GLOB=RATIO such as layer3.*=0.2, got {pair!r}")
    return ratios


def parse_shape(text: str | None) -> tuple[int, int, int] | None:
    """'3x32x32' -> (3, 32, 32)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--input is CxHxW such as 3x32x32, got {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])


def open_data(options: dict[str, Any]) -> "ImageData":
    """The data set of --data and --data-arg."""
    data = open_optional_data(options)
    if data is None:
        raise UsageError("no data set; give --data (digits, cifar10, imagefolder:ROOT, ...)")
    return data


def open_optional_data(options: dict[str, Any]) -> "ImageData | None":
    """The data set of --data and --data-arg, or None where it is not given."""
    if options["data"] is None:
        if options["data_args"]:
            raise UsageError("--data-arg belongs to --data; name the data set, too")
        return None
    from ..models.data import load_data

    return load_data(options["data"], **data_arguments(options["data_args"]))


def open_network_and_data(options: dict[str, Any]) -> "tuple[Network, ImageData | None]":
    """The network, and the data of --data where they are given: normalised as a bundle's manifest says."""
    if options["bundle"] is None:
        data = open_optional_data(options)
        network = open_network(options, data)
    else:
        network = open_network(options)
        data = open_data_like(options, network)
    return (network if data is None else network.with_data(data)), data


def open_data_like(options: dict[str, Any], network: "Network") -> "ImageData | None":
    """The data set of --data, normalised as the network's own unless --data-arg says otherwise; None where --data is not given.

    A network wants the normalisation that it was trained with, whatever is usual for the data. The user's own code keeps its own.
    The data that the manifest itself names are also split and resized as it says.
    """
    from ..models.data import load_data
    from ..models.user_code import is_user_spec
    from ..networks import load_arguments

    if options["data"] is None or network.data is None:
        return open_optional_data(options)
    own = load_arguments(network.data)
    if options["data"] != own["spec"]:
        if is_user_spec(options["data"]):
            return open_optional_data(options)
        own = {key: own[key] for key in ("mean", "std")}
    return load_data(**{**own, **data_arguments(options["data_args"]), "spec": options["data"]})


def data_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """Arguments of `load_data` from KEY=VALUE pairs."""
    kinds: dict[str, Callable[[str], Any]] = {
        **{"validation": float, "seed": int, "image_size": int, "crop": float, "channels": int},
        **{"mean": _floats, "std": _floats, "white": float, "classes": str, "labels": str},
    }
    arguments = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in kinds:
            raise UsageError(f"--data-arg takes {', '.join(kinds)}, got {pair!r}")
        try:
            arguments[key] = kinds[key](value)
        except ValueError:
            raise UsageError(f"--data-arg {key} has a value that is no number: {value!r}") from None
    return arguments


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def check_named(options: dict[str, Any]) -> None:
    """Fail for a network or a checkpoint that does not exist, before data are read."""
    from ..models.zoo import accepted_by

    if options.get("bundle") is not None:
        return
    accepted_by(model_spec(options["model"], options["model_args"]).name)
    checkpoint = options["checkpoint"]
    if checkpoint is not None and not checkpoint.is_file():
        raise UsageError(
            f"checkpoint {checkpoint} {'is a folder' if checkpoint.is_dir() else 'does not exist'}; give the path of a weights file"
        )


def warn_random(options: dict[str, Any]) -> None:
    """Say so where a network is used untrained."""
    if options.get("bundle") is None and options["checkpoint"] is None:
        click.echo("warning: no --checkpoint, so the weights are random; train the network first (fineprune train)", err=True)


def model_spec(name: str | None, pairs: Iterable[str]) -> "ModelSpec":
    """The network of --model and --model-arg."""
    from ..models.zoo import ModelSpec, parse_args

    if name is None:
        raise UsageError("no network; name a bundle, or give --model (and --checkpoint)")
    return ModelSpec(name=name, args=parse_args(pairs))


def open_network(options: dict[str, Any], data: "ImageData | None" = None) -> "Network":
    """The bundle named on the command line (--model allows the network that it names), or else --model with --checkpoint."""
    from ..common.progress import Bars
    from ..networks import open_model

    shape = parse_shape(options.get("input_shape"))
    if options.get("bundle") is None:
        spec = model_spec(options["model"], options["model_args"])
        return open_model(spec, checkpoint=options["checkpoint"], data=data, input_shape=shape, progress=Bars())
    if options["checkpoint"]:
        raise UsageError("a bundle has its weights itself; leave --checkpoint or the bundle out")
    network = _open_bundle(options)
    if shape is not None and shape != network.input_shape:
        fixed, asked = ("x".join(map(str, s)) for s in (network.input_shape, shape))
        raise UsageError(
            f"the masks of {options['bundle']} were made for inputs of {fixed}, not {asked}; compress the network at {asked} instead"
        )
    return network


def _open_bundle(options: dict[str, Any]) -> "Network":
    from ..manifest import read_bundle
    from ..models.zoo import build
    from ..networks import network_of, spec_of
    from ..trust import network_names

    bundle = read_bundle(options["bundle"])
    if options["model"] is None:
        if options["model_args"]:
            raise UsageError("--model-arg belongs to --model; name the network, too")
        return network_of(bundle, trust=options["trust"])
    given, named = model_spec(options["model"], options["model_args"]), spec_of(bundle)
    if named is None:
        return network_of(bundle, model=build(given), trust=options["trust"])
    differing = [f"{key}={value}" for key, value in given.args.items() if named.args.get(key) != value]
    if given.name != named.name or differing:
        raise UsageError(
            f"{options['bundle']} is of the network {named.name} with {named.args}, not {' with '.join([given.name, *differing])}; "
            "give --model as its manifest does, or leave it out"
        )
    return network_of(bundle, trust=(*options["trust"], *network_names(given)))
