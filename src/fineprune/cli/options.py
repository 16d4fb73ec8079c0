"""Options that several commands share, and what they become. Nothing heavy is imported before a command runs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fineprune.common.errors import UsageError

from .sections import NETWORK, stack

if TYPE_CHECKING:
    from fineprune.models.data import ImageData
    from fineprune.models.zoo import ModelSpec

    from ..networks import Network

model_options = stack(
    click.option(
        "--model",
        metavar="NAME",
        help="The network: a name that `fineprune models` lists, torchvision:NAME, file.py:factory for your own, or an ONNX file.",
    ),
    click.option(
        "--model-arg", "model_args", metavar="KEY=VALUE", multiple=True, help="Pass an argument to the network, e.g. width=32 (repeatable)."
    ),
    click.option(
        "--checkpoint",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Load the weights of --model from this file, a state dict (.pt, .th or .safetensors).",
    ),
    section=NETWORK,
)
trust_option = click.option(
    "--trust", multiple=True, metavar="NAME", help="Allow this code, file or folder of yours that the bundle or recipe names (repeatable)."
)
bundle_argument = stack(click.argument("bundle", required=False, type=click.Path(path_type=Path)), trust_option)
input_option = click.option("--input", "input_shape", metavar="CxHxW", help="The shape of one input, e.g. 3x32x32, where no data tell it.")
data_options = stack(
    click.option(
        "--data",
        metavar="SPEC",
        help="The data set: digits, cifar10[:ROOT], cifar100[:ROOT], fashion-mnist[:ROOT], imagefolder:ROOT, npz:FILE, or "
        "file.py:factory for your own.",
    ),
    click.option(
        "--data-arg",
        "data_args",
        metavar="KEY=VALUE",
        multiple=True,
        help="Say how the data set is read (repeatable): validation=0.1, seed=0, image_size=224, crop=0.875, channels=3, "
        "mean=0.5,0.5,0.5, std=..., white=4095, classes=FILE, labels=FILE, or labels=none for images without any.",
    ),
    section=NETWORK,
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="Where to compute: auto (on a GPU if there is one), cpu, cuda, cuda:N or mps."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")


_LARGEST = 1 << 16


def given(options: dict[str, Any]) -> dict[str, Any]:
    """`options` with None in the place of what is only their default, so that a file may say something else."""
    source = click.get_current_context().get_parameter_source
    default = click.core.ParameterSource.DEFAULT
    return {name: None if source(name) is default and not isinstance(value, tuple) else value for name, value in options.items()}


def parse_shape(text: str | None) -> tuple[int, int, int] | None:
    """'3x32x32' -> (3, 32, 32)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--input is CxHxW such as 3x32x32, got {text!r}")
    if any(int(part) > _LARGEST for part in parts):
        raise UsageError(f"--input is CxHxW with numbers up to {_LARGEST}, got {text!r}")
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
    from fineprune.models.data import load_data

    return load_data(options["data"], **{**_size_of_file(options), **data_arguments(options["data_args"])})


def _size_of_file(options: dict[str, Any]) -> dict[str, int]:
    """The image_size of a network that is an ONNX file of square images; nothing where data come from code of the user's own."""
    from fineprune.models import onnx_file
    from fineprune.models.data.load import is_user_data
    from fineprune.models.naming import is_onnx

    if options.get("bundle") is not None or not is_onnx(options.get("model") or "") or is_user_data(options["data"]):
        return {}
    _, height, width = onnx_file.input_shape(onnx_file.read(options["model"]))
    return {"image_size": height} if height is not None and height == width else {}


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
    from fineprune.models.data import load_data
    from fineprune.models.data.load import is_user_data

    from ..networks import load_arguments, manifest_of
    from ..trust import data_names, require_data

    if options["data"] is None or network.data is None:
        return open_optional_data(options)
    own = load_arguments(network.data)
    if options["data"] != own["spec"]:
        if is_user_data(options["data"]):
            return open_optional_data(options)
        own = {key: own[key] for key in ("mean", "std")}
    given = {**data_arguments(options["data_args"]), "spec": options["data"]}
    require_data({**own, **given}, [*options["trust"], *data_names(given)], manifest_of(network.bundle))
    return load_data(**{**own, **given})


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
    """Fail for a network or a checkpoint that does not exist, before data are read; an ONNX file named as a bundle is the network."""
    from fineprune.models import onnx_file
    from fineprune.models.naming import is_onnx
    from fineprune.models.zoo import accepted_by, missing_checkpoint

    if options.get("bundle") is not None and is_onnx(str(options["bundle"])) and options["model"] is None:
        options.update(model=str(options["bundle"]), bundle=None)
    if options.get("bundle") is not None:
        return
    name = model_spec(options["model"], options["model_args"]).name
    if is_onnx(name):
        onnx_file.read(name)
    else:
        accepted_by(name)
    checkpoint = options["checkpoint"]
    if checkpoint is not None and not checkpoint.is_file():
        raise missing_checkpoint(checkpoint)


def warn_random(options: dict[str, Any]) -> None:
    """Say so where a network is used untrained."""
    from fineprune.models.naming import is_onnx

    if options.get("bundle") is None and options["checkpoint"] is None and not is_onnx(options["model"]):
        click.echo("warning: no --checkpoint, so the weights are random; train the network first (fineprune train)", err=True)


def model_spec(name: str | None, pairs: Iterable[str]) -> "ModelSpec":
    """The network of --model and --model-arg."""
    from fineprune.models.zoo import ModelSpec, parse_args

    if name is None:
        raise UsageError("no network; name a bundle, or give --model (and --checkpoint)")
    return ModelSpec(name=name, args=parse_args(pairs))


def open_network(options: dict[str, Any], data: "ImageData | None" = None) -> "Network":
    """The bundle named on the command line (--model allows the network that it names), or else --model with --checkpoint."""
    from fineprune.common.progress import Bars

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
    from fineprune.models.zoo import build

    from ..manifest import read_bundle
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
