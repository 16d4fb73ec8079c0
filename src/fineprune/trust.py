"""What a file names is not imported, called or read by itself: only on the user's word.

Networks of the zoo and of torchvision, and data sets without a place, are named freely by a manifest or a recipe. Everything else in it
(the user's own code and what text is handed to it, files, folders, addresses) has to be given again, or allowed by its name.
"""

import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from fineprune.common.errors import UsageError
from fineprune.models.naming import is_onnx
from fineprune.models.zoo import ModelSpec

_FREE = "torchvision:"


def network_names(spec: ModelSpec) -> list[str]:
    """What must be allowed before `spec` is built: the user's own code, and each text argument as KEY=VALUE (it may be a path)."""
    if spec.graph is not None or not _has_place(spec.name):
        return []
    return [spec.name, *(f"{key}={value}" for key, value in spec.args.items() if isinstance(value, str))]


def data_names(arguments: Mapping[str, Any]) -> list[str]:
    """What must be allowed before `load_data(**arguments)`: a spec with a place or code in it, and other text as KEY=VALUE."""
    spec = arguments["spec"]
    texts = [f"{key}={value}" for key, value in arguments.items() if key != "spec" and isinstance(value, str)]
    return [*([spec] if _has_place(spec) else ()), *texts]


def recipe_names(settings: Mapping[str, Any], *, output_given: bool) -> list[str]:
    """What must be allowed before a recipe runs; also an output outside the current folder, where the user gives no other."""
    model = settings["model"]
    names = network_names(ModelSpec(name=model["name"], args=dict(model.get("args", {}))))
    names += [model["checkpoint"]] if "checkpoint" in model else []
    names += data_names(settings["data"])
    names += [place for name in ("times", "front") if (place := settings.get("compress", {}).get(name))]
    for table in ("train", "finetune"):
        servers = settings.get(table, {}).get("asynchronous") or {}
        names += [servers["address"]] if servers.get("address") else []
    names += settings.get("report", {}).values()
    output = PurePath(settings.get("output", ""))
    if not output_given and (output.is_absolute() or ".." in output.parts):
        names.append(str(output))
    return list(dict.fromkeys(names))


def missing(names: Iterable[str], trust: Collection[str]) -> list[str]:
    """Those of `names` that the user has not allowed."""
    return [name for name in names if name not in trust]


def require_network(spec: ModelSpec, trust: Collection[str], where: Path | str) -> None:
    """UsageError, with both ways to allow it, where building the network that the file `where` names needs the user's word."""
    if names := missing(network_names(spec), trust):
        raise UsageError(
            f"{where} names the network {' with '.join(names)}: your own code, which a file does not run by itself; "
            f"give {_model_options(spec)}, or {options(names)} (in Python: the module itself, or trust={names!r})"
        )


def require_data(arguments: Mapping[str, Any], trust: Collection[str], where: Path | str) -> None:
    """UsageError, with both ways to allow it, where the data that the file `where` names need the user's word."""
    if names := missing(data_names(arguments), trust):
        raise UsageError(
            f"{where} names the data {' with '.join(names)}, which are not read by themselves; "
            f"give {_data_options(arguments)}, or {options(names)} (in Python: samples, or trust={names!r})"
        )


def require_recipe(settings: Mapping[str, Any], trust: Collection[str], where: Path | str, *, output_given: bool) -> None:
    """UsageError that lists all names at once where a recipe needs the user's word."""
    if names := missing(recipe_names(settings, output_given=output_given), trust):
        raise UsageError(
            f"{where} names {', '.join(names)}: code, files and folders of yours, which a recipe does not run, read or write by itself; "
            f"if you trust it, run it with {options(names)} (in Python: trust={names!r})"
        )


def named_again(spec: ModelSpec | None, data: Mapping[str, Any]) -> str:
    """The options that a command on the bundle of this network and these arguments of `load_data` needs, each after a space."""
    model = f" {_model_options(spec)}" if spec is not None and network_names(spec) else ""
    return f"{model} {_data_options(data)}" if data_names(data) else model


def _model_options(spec: ModelSpec) -> str:
    name, *texts = network_names(spec)
    return f"--model {shlex.quote(name)}" + "".join(f" --model-arg {shlex.quote(text)}" for text in texts)


def _data_options(arguments: Mapping[str, Any]) -> str:
    texts = [name for name in data_names(arguments) if name != arguments["spec"]]
    return f"--data {shlex.quote(arguments['spec'])}" + "".join(f" --data-arg {shlex.quote(text)}" for text in texts)


def options(names: Iterable[str]) -> str:
    """As the command line takes them."""
    return " ".join(f"--trust {shlex.quote(name)}" for name in names)


def _has_place(spec: str) -> bool:
    return is_onnx(spec) or (":" in spec and not spec.startswith(_FREE))
