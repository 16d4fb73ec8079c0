"""A recipe file: what it may say, checked whole before any stage runs.

[model]     name, args, checkpoint        (a checkpoint takes the place of [train])
[data]      spec and any argument of load_data
[train]     fields of TrainConfig; asynchronous = { algorithm = "lc-asgd", workers = 8 } and other fields of AsyncConfig
[compress]  preset, prune (a ratio) and prune_split ("preset" or "common"), or ffp and fwp (a ratio or a table),
            or method (a name of `fineprune methods`) and rate, and ffp on top,
            or a target: target_latency ("2.5ms", "0.4x"), target_macs, max_drop, int8, threads, batch, times, levels,
            or front (a file of `fineprune front`) and point (a number there), whose settings the other keys change,
            include, exclude (globs of layers; also in the tables ffp and fwp, beside per_layer = { "layer3.*" = 0.8 }),
            samples, calibration_batch_size, compare_dense, batchnorm_samples, seed,
            prune_schedule ("one-shot", "rounds", "cubic", "each-epoch", "asl", or a table: name and settings),
            reconstruct (true, false or a table: images, columns, memory_bytes)
[finetune]  fields of TrainConfig, distill = 0.9 or { share = 0.9, temperature = 4.0,
            features = 1.0, layers = ["layer1"] } and qat_epochs = 1 among them; epochs = 0 leaves it out
[export]    plain, dynamic_size, parity_samples, int8 (true, false or a table: ranges, images, max_drop)
[bench]     batch_sizes, threads, rounds, seed, int8 (true or false), peers ("all", "none" or a list), layers (true or false)
[report]    statistics (a folder of `fineprune calibrate`), sensitivity, front (files of these commands): shown in report.html, too
output      the run folder
device      where to compute, as `--device` says
"""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune.common.errors import UsageError
from fineprune.common.files import check_plain, parsing_fault, read_text

if TYPE_CHECKING:
    from fineprune.export.benchmark import BenchmarkConfig
    from fineprune.models.training.config import TrainConfig

    from .asked import Asked
    from .job import Job

Settings = Mapping[str, Any]

_NUMBER = (int, float)
TABLES: dict[str, dict[str, tuple[type, ...]]] = {
    "model": {"name": (str,), "args": (dict,), "checkpoint": (str,)},
    "data": {
        **{"spec": (str,), "validation": _NUMBER, "seed": (int,), "image_size": (int,)},
        **{"crop": _NUMBER, "channels": (int,), "white": _NUMBER, "mean": (list,), "std": (list,)},
        **{"classes": (list, int, str), "labels": (str,)},
    },
    "train": {},  # the fields of TrainConfig, which checks them itself
    "compress": {
        **{
            "preset": (str,),
            "prune": _NUMBER,
            "prune_split": (str,),
            **{"method": (str,), "rate": _NUMBER},
            "ffp": (*_NUMBER, dict),
            "fwp": (*_NUMBER, dict),
            **{"include": (str, list), "exclude": (str, list), "front": (str,), "point": (int,)},
            "prune_schedule": (str, dict),
            **{"target_latency": (str,), "target_macs": _NUMBER, "max_drop": _NUMBER, "int8": (bool,)},
            **{"threads": (int,), "batch": (int,), "times": (str,), "levels": (list,)},
            "samples": (int,),
            "calibration_batch_size": (int,),
        },
        **{"compare_dense": (bool,), "batchnorm_samples": (int,), "seed": (int,), "reconstruct": (bool, dict)},
    },
    "finetune": {},
    "export": {"plain": (bool,), "dynamic_size": (bool,), "parity_samples": (int,), "int8": (bool, dict)},
    "bench": {
        **{"batch_sizes": (list,), "threads": (list,), "rounds": (int,), "seed": (int,), "int8": (bool,)},
        **{"peers": (str, list), "layers": (bool,)},
    },
    "report": {"statistics": (str,), "sensitivity": (str,), "front": (str,)},
}
TEXTS = ("output", "device")
"""Entries of the top level."""
_JOB = ("compare_dense", "batchnorm_samples")
_WHAT = ("prune", "method", "ffp", "fwp", "target_latency", "target_macs", "max_drop", "front")
"""Keys of [compress] of which one says what is pruned."""
_NOT_BENCH = ("int8", "peers", "layers")
_KINDS = {str: "text", dict: "a table", int: "a whole number", float: "a number", list: "a list", bool: "true or false"}


def read_recipe(path: Path | str) -> dict[str, Any]:
    """Parse and check a recipe; UsageError names the file and the entry that is wrong."""
    path = Path(path)
    try:
        settings = tomllib.loads(read_text(path))
        check_plain(settings)
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise UsageError(f"{path} is not valid TOML: {parsing_fault(error)}") from error
    for name, value in settings.items():
        _check_entry(path, name, value)
    for name, entry in (("model", "name"), ("data", "spec")):
        if entry not in settings.get(name, {}):
            raise UsageError(f"{path}: [{name}] must say its {entry}")
    if ("train" in settings) == ("checkpoint" in settings["model"]):
        raise UsageError(f"{path}: give either [train] or a checkpoint in [model]")
    if not settings.get("compress", {}).keys() & set(_WHAT):
        raise UsageError(
            f"{path}: nothing to prune; give prune, or ffp and fwp, in [compress] (fractions such as 0.3), or a method, or a target"
        )
    makers = (*_CHECKS, ("train", train_config), ("finetune", finetune_of), ("compress", job_of), ("bench", bench_config))
    for name, make in makers:
        if name in settings:
            try:
                make(settings)
            except UsageError as error:
                raise UsageError(f"{path}: [{name}] {error}") from error
    return settings


def train_config(settings: Settings) -> "TrainConfig":
    """Of [train]."""
    from fineprune.models.training.config import TrainConfig
    from fineprune.models.training.distributed.config import with_defaults

    config = TrainConfig(**with_defaults(settings.get("train", {})))
    if config.distill is not None:
        raise UsageError("distill belongs to [finetune], which learns from the dense network; [train] has none to learn from")
    return config


def finetune_of(settings: Settings) -> "TrainConfig | None":
    """Of [finetune], as far as it says itself."""
    from .job import finetune_config

    return finetune_config(**_finetune(settings))


def _finetune(settings: Settings) -> dict[str, Any]:
    from fineprune.models.training.distributed.config import with_defaults

    return with_defaults(settings.get("finetune", {}))


def asked_of(settings: Settings) -> "Asked":
    """Of [compress] and [finetune], as far as they say themselves."""
    from .asked import Asked

    return Asked.of(settings.get("compress", {}), _finetune(settings))


def job_of(settings: Settings, device: str = "auto") -> "Job":
    """Of [compress] and [finetune]."""
    table = settings.get("compress", {})
    return asked_of(settings).job(**{name: table[name] for name in _JOB if name in table}, device=device)


def with_point(settings: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """`settings` with those of the point that [compress] names written out. The file of the front is read here, and nowhere before."""
    table = settings.get("compress", {})
    try:
        asked = asked_of(settings)
        if (chosen := asked.at_point(table.get("front"), table.get("point"))) is asked:
            return settings
        tables = chosen.to_json()
        settings = {**settings, **tables, "compress": {**tables["compress"], **{name: table[name] for name in _JOB if name in table}}}
        job_of(settings)
    except UsageError as error:
        raise UsageError(f"{path}: [compress] {error}") from error
    return settings


def _check_model(settings: Settings) -> None:
    """The arguments, as far as they can be checked before the network is built."""
    from fineprune.models.zoo import ModelSpec

    table = settings["model"]
    ModelSpec.from_json({"name": table["name"], "args": table.get("args", {})})


def _check_data(settings: Settings) -> None:
    for name in ("mean", "std"):
        values = settings["data"].get(name, ())
        if not all(isinstance(value, _NUMBER) and not isinstance(value, bool) for value in values):
            raise UsageError(f"{name} is a list of numbers, got {values}")
    classes = settings["data"].get("classes", ())
    if isinstance(classes, list) and not all(isinstance(name, str) for name in classes):
        raise UsageError(f"classes is a list of names, their number, or the path of a file, got {classes!r:.80}")


def _check_export(settings: Settings) -> None:
    if settings["export"].get("parity_samples", 0) < 0:
        raise UsageError(f"parity_samples is at least 0, got {settings['export']['parity_samples']}")
    from .int8 import int8_config

    int8_config(settings["export"].get("int8"))


def _check_compress(settings: Settings) -> None:
    from .pareto.points import check_pair

    check_pair(settings["compress"].get("front"), settings["compress"].get("point"))


def _check_report(settings: Settings) -> None:
    """That what the page shows beside the run is there before hours of work."""
    for key, name in settings["report"].items():
        if not Path(name).exists():
            raise UsageError(f"{key}: there is no {name}; make it first, or leave {key} out")


def _check_bench(settings: Settings) -> None:
    from .latency import peers_of

    peers_of(settings["bench"].get("peers", "all"))


_CHECKS = (
    *(("model", _check_model), ("data", _check_data), ("compress", _check_compress), ("export", _check_export)),
    *(("bench", _check_bench), ("report", _check_report)),
)


def bench_config(settings: Settings) -> "BenchmarkConfig":
    """Of [bench]."""
    from fineprune.export.benchmark import BenchmarkConfig

    table: dict[str, Any] = {name: value for name, value in settings.get("bench", {}).items() if name not in _NOT_BENCH}
    for name in ("batch_sizes", "threads"):
        if not all(type(value) is int for value in table.get(name, ())):
            raise UsageError(f"{name} is a list of whole numbers, got {table[name]}")
        if name in table:
            table[name] = tuple(table[name])
    return BenchmarkConfig(**table)


def _check_entry(path: Path, name: str, value: Any) -> None:
    """An entry of the top level: a text or a table."""
    if name in TEXTS:
        if not isinstance(value, str) or not value:
            what = "the path of the run folder" if name == "output" else "where to compute, such as 'cpu'"
            raise UsageError(f"{path}: {name} is {what}, got {value!r}")
        return
    if name not in TABLES:
        raise UsageError(f"{path}: unknown entry {name!r}; a recipe has {', '.join(TEXTS)} and the tables {', '.join(TABLES)}")
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {name} is a table, written [{name}], got {value!r}")
    accepted = accepted_of(name)
    unknown = set(value) - set(accepted)
    if unknown:
        raise UsageError(f"{path}: [{name}] has unknown {', '.join(sorted(unknown))}; it takes {', '.join(accepted)}")
    for key, item in value.items():
        kinds = accepted[key]
        if kinds and (not isinstance(item, kinds) or (isinstance(item, bool) and bool not in kinds)):
            named = [_KINDS[kind] for kind in kinds if kind is not int or float not in kinds]
            raise UsageError(f"{path}: [{name}] {key} is {' or '.join(named)}, got {item!r}")


def accepted_of(name: str) -> dict[str, tuple[type, ...]]:
    """The keys of a table and the types of their values; none: what reads them checks them."""
    if name not in ("train", "finetune"):
        return TABLES[name]
    from fineprune.models.training.config import TrainConfig

    return {f.name: (list,) if f.name == "milestones" else () for f in fields(TrainConfig)}
