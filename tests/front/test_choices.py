"""Every flag of every command has its key in a recipe and its argument in Python; what has none is named here, with the reason."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import pytest

import fineprune as package
from fineprune.asked import COMPRESS, Asked
from fineprune.cli import command
from fineprune.compressor.config import FFPConfig, FWPConfig
from fineprune.export.benchmark import BenchmarkConfig
from fineprune.export.int8.quantiser import Int8Config
from fineprune.models.data import load_data
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.distillation import DistillConfig
from fineprune.models.training.evaluate import evaluate
from fineprune.pareto.front import NOT_HERE
from fineprune.recipe import TABLES, TEXTS, accepted_of, job_of
from fineprune.report import write_report
from fineprune.training import train_network

WITHIN: dict[str, set[str]] = {
    kind: {one.name for one in fields(settings)}
    for kind, settings in (
        *(("ffp", FFPConfig), ("fwp", FWPConfig), ("finetune", TrainConfig), ("distill", DistillConfig), ("int8", Int8Config)),
        ("config", TrainConfig),
    )
}
"""What a table within a table holds, or an object that an argument is."""
NETWORK = {
    **{"model": ("model.name", "model"), "model_args": ("model.args", "model_args"), "checkpoint": ("model.checkpoint", "checkpoint")},
    **{"data": ("data.spec", "data"), "data_args": ("data.validation", "data"), "device": ("device", "device")},
}
FFP = ("criterion", "scope", "propagate", "softmax", "within", "count", "sample_ratio")
RANKING = {
    **{name: (f"compress.{name}", name) for name in ("preset", "include", "exclude", "samples")},
    **{f"ffp_{name}": (f"compress.ffp.{name}", f"ffp.{name}") for name in FFP},
    **{f"fwp_{name}": (f"compress.fwp.{name}", f"fwp.{name}") for name in ("criterion", "scope", "unit", "order", "share")},
    **{name: (f"compress.fwp.{name}", f"fwp.{name}") for name in ("lanes", "layer_types", "pointwise")},
}
RATIOS = {
    **{"ratio": ("compress.prune", "prune"), "ffp_ratio": ("compress.ffp", "ffp"), "fwp_ratio": ("compress.fwp", "fwp")},
    **{"ffp_layer": ("compress.ffp.per_layer", "ffp.per_layer"), "fwp_layer": ("compress.fwp.per_layer", "fwp.per_layer")},
}
_OTHER_NAMES = {
    **{"no_augment": "augment", "auto_args": "auto_lr", "policy_args": "policy", "trainer": "asynchronous", "trainer_args": "asynchronous"}
}
TRAINING = {
    name: f"finetune.{_OTHER_NAMES.get(name, name)}"
    for name in (
        *("optimizer", "momentum", "weight_decay", "schedule", "no_augment", "precision", "workers", "milestones", "gamma", "auto_args"),
        *("warmup_epochs", "label_smoothing", "max_grad_norm", "policy", "policy_args", "trainer", "trainer_args"),
        *("epochs", "batch_size", "lr", "qat_epochs", "seed"),
    )
}
FINETUNE = {
    **{name: (place, place) for name, place in TRAINING.items()},
    "distill": ("finetune.distill", "distill"),
    "temperature": ("finetune.distill.temperature", "distill.temperature"),
    "features": ("finetune.distill.features", "distill.features"),
    "layers": ("finetune.distill.layers", "distill.layers"),
    "schedule_args": ("compress.prune_schedule", "prune_schedule"),
}
PRINTED = "how what was made is shown; Python returns it, a recipe keeps summary.json and report.html"
NO_STAGE = "no stage of a recipe: it looks at a network, and nothing is made of what it shows"
A_BUNDLE = "its function takes a bundle, or a network that is open, and samples"
MADE_BEFORE = "a recipe makes this itself in the stage before"


@dataclass(frozen=True)
class Row:
    """What a command's flags become. function: None where there is none; table: None where a recipe has no such stage."""

    function: Callable[..., Any] | None
    table: str | None
    places: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By parameter: the place in a recipe and in Python, where they are not called as the parameter is."""
    no_recipe: Mapping[str, str] = field(default_factory=dict)
    no_python: Mapping[str, str] = field(default_factory=dict)


ROWS = {
    "compress": Row(
        package.compress,
        "compress",
        {**NETWORK, **RANKING, **RATIOS, **FINETUNE, "bundle": ("", "model"), "output": ("output", "output")},
        {
            "bundle": "a recipe begins with [model]",
            "trust": "`run` takes it: a file does not trust itself",
            "statistics": "a recipe's calibration is kept and gone on with by itself",
            "as_json": PRINTED,
        },
        {"trust": "a bundle in this process, or the module itself, is the user's word", "as_json": PRINTED},
    ),
    "calibrate": Row(
        package.compress,
        "compress",
        {**NETWORK, **RANKING, **RATIOS, "output": ("output", "statistics")},
    ),
    "train": Row(
        train_network,
        "train",
        {
            **NETWORK,
            **{name: (place.replace("finetune", "train"), place.replace("finetune", "config")) for name, place in TRAINING.items()},
            **{"model": ("model.name", "spec"), "model_args": ("model.args", "spec"), "output": ("output", "output")},
            "suspects": ("train.record_losses", "suspects"),
        },
        {"as_json": PRINTED},
        {"as_json": PRINTED},
    ),
    "export": Row(
        package.to_onnx,
        "export",
        {
            **NETWORK,
            **{"output": ("output", "path"), "int8_ranges": ("export.int8.ranges", "int8.ranges")},
            **{"int8_images": ("export.int8.images", "int8.images"), "max_drop": ("export.int8.max_drop", "int8.max_drop")},
        },
        {"bundle": MADE_BEFORE, "trust": "`run` takes it", "input_shape": "the data tell it", "as_json": PRINTED},
        {**dict.fromkeys(("model_args", "checkpoint", "data", "data_args", "input_shape"), A_BUNDLE), "as_json": PRINTED},
    ),
    "bench": Row(
        package.bench,
        "bench",
        {
            **NETWORK,
            **{
                "batch_sizes": ("bench.batch_sizes", "config"),
                "threads": ("bench.threads", "config"),
                "rounds": ("bench.rounds", "config"),
            },
            "bundle": ("", "network"),
        },
        {
            **{"bundle": MADE_BEFORE, "onnx": MADE_BEFORE, "trust": "`run` takes it", "input_shape": "the data tell it"},
            **dict.fromkeys(("as_json", "plot"), PRINTED),
            **dict.fromkeys(("machine", "redo"), "facts of the machine, and not of a network"),
        },
        {
            **dict.fromkeys(("model_args", "checkpoint", "data", "data_args", "input_shape"), A_BUNDLE),
            **dict.fromkeys(("as_json", "plot"), PRINTED),
            **dict.fromkeys(("machine", "redo"), "facts of the machine, and not of a network"),
            "layers": "a function of its own, fineprune.bench_layers",
        },
    ),
    "sensitivity": Row(package.sensitivity, None, {**NETWORK, **RANKING}, {}, dict.fromkeys(("as_json", "plot"), PRINTED)),
    "front": Row(
        package.front,
        None,
        {**NETWORK, **RANKING, **RATIOS, **FINETUNE}
        | {"ratios": ("", "prune"), **dict.fromkeys(("batch", "threads", "rounds"), ("", "config"))},
        {},
        dict.fromkeys(("as_json", "plot"), PRINTED),
    ),
    "profile": Row(package.profile, None, {**NETWORK, "network": ("", "model"), "fwp_unit": ("", "fwp.unit")}, {}, {"as_json": PRINTED}),
    "eval": Row(
        evaluate,
        None,
        {"bundle": ("", "model"), "model": ("", "model"), "model_args": ("", "model"), "checkpoint": ("", "model")}
        | {"data": ("", "split"), "data_args": ("", "split")},
        {},
        {"trust": "the network is open", "as_json": PRINTED},
    ),
    "run": Row(
        package.run,
        None,
        {},
        {},
        {"as_json": PRINTED},
    ),
    "report": Row(write_report, None, {"output": ("", "path")}),
    "compare": Row(None, None),
    "macs": Row(None, None),
    "models": Row(None, None),
    "methods": Row(None, None),
    "plan-training": Row(None, None),
}
"""Those without a function print what compressor.macs.count_macs, models.zoo.names, compressor.criteria.criteria and
models.training.sampling tell, or show what `report` does of several bundles."""


def in_recipe(place: str) -> bool:
    """Whether a recipe has it: an entry of the top level, TABLE.KEY or TABLE.KEY.SETTING."""
    table, *keys = place.split(".")
    if not keys:
        return table in TEXTS
    return table in TABLES and keys[0] in accepted_of(table) and (len(keys) == 1 or keys[1] in WITHIN[keys[0]])


def in_python(function: Callable[..., Any], place: str) -> bool:
    """Whether the function takes it: ARGUMENT or ARGUMENT.SETTING."""
    argument, *setting = place.split(".")
    taken = set(inspect.signature(function).parameters)
    taken |= set(inspect.signature(package.compress).parameters) - set(NOT_HERE) if function is package.front else set()
    return argument in taken and (not setting or setting[0] in WITHIN[argument])


def test_every_command_is_in_the_table() -> None:
    assert set(ROWS) == set(command.commands)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_flag_has_its_recipe_key_and_its_python_argument(name: str) -> None:
    row, params = ROWS[name], command.commands[name].params
    missing = []
    for param in params:
        assert param.name is not None
        recipe, python = row.places.get(param.name, (f"{row.table}.{param.name}", param.name))
        if row.table is not None and param.name not in row.no_recipe and not in_recipe(recipe):
            missing.append(f"{param.name}: no {recipe} in a recipe")
        if row.function is not None and param.name not in row.no_python and not in_python(row.function, python):
            missing.append(f"{param.name}: {row.function.__name__} takes no {python}")
    assert missing == []


@pytest.mark.parametrize("name", sorted(ROWS))
def test_no_exception_is_out_of_date(name: str) -> None:
    """A flag that is gone, or has its key or argument now, is no exception any more."""
    row, known = ROWS[name], {param.name for param in command.commands[name].params}
    assert set(row.no_recipe) | set(row.no_python) <= known
    assert [flag for flag in row.no_recipe if row.table and in_recipe(row.places.get(flag, (f"{row.table}.{flag}", ""))[0])] == []
    assert [flag for flag in row.no_python if row.function and in_python(row.function, row.places.get(flag, ("", flag))[1])] == []


@pytest.mark.parametrize(
    ("place", "there"),
    [
        *(("compress.include", True), ("compress.ffp.per_layer", True), ("train.lr", True), ("device", True), ("data.crop", True)),
        *(("compress.inclde", False), ("compress.fwp.propagate", False), ("train.rate", False), ("out", False), ("compres.ffp", False)),
    ],
)
def test_the_reader_of_places_can_tell(place: str, there: bool) -> None:
    assert in_recipe(place) == there


def test_a_recipe_and_python_have_the_same_words() -> None:
    assert set(COMPRESS) <= set(inspect.signature(package.compress).parameters)
    assert set(COMPRESS) <= set(TABLES["compress"])
    assert set(TABLES["data"]) == set(inspect.signature(load_data).parameters) - {"progress"}
    assert set(TABLES["bench"]) <= {*(one.name for one in fields(BenchmarkConfig)), "int8", "peers", "layers"}


def test_layers_in_a_recipe() -> None:
    table = {"prune": 0.5, "include": ["layer*"], "exclude": "conv1", "fwp": {"per_layer": {"layer3.*": 0.8}}}
    config = job_of({"compress": table, "finetune": {"epochs": 0}}).config
    assert config.ffp.include == config.fwp.include == ["layer*"]
    assert config.fwp.exclude == ("conv1",)
    assert config.fwp.ratio_of("layer3.0") == 0.8


def test_what_is_left_open_is_what_lies_beneath() -> None:
    beneath = Asked.of(
        {"prune": 0.5, "prune_split": "common", "fwp": {"unit": "quad", "per_layer": {"a": 0.1}}, "seed": 3, "samples": 9},
        {"epochs": 2, "momentum": 0.8},
    )
    assert Asked().over(beneath) == beneath
    assert Asked.of(*beneath.to_json().values()) == beneath
    more = Asked.of({"samples": 20, "ffp": {"scope": "layer"}}, {"epochs": 20, "lr": None}).over(beneath)
    assert more.prune == 0.5 and more.calibration == {"samples": 20, "seed": 3} and more.seed == 3
    assert more.finetune == {"epochs": 20, "momentum": 0.8} and more.ffp == {"scope": "layer"}
    assert Asked.of({"prune": 0.6}, {}).over(beneath).to_json()["compress"]["fwp"] == {"unit": "quad", "per_layer": {"a": 0.1}}
    ratios = Asked.of({"fwp": 0.4}, {}).over(beneath)
    assert (ratios.prune, ratios.prune_split, ratios.fwp) == (None, None, {"unit": "quad", "per_layer": {"a": 0.1}, "ratio": 0.4})
    target = Asked.of({"target_macs": 0.4, "levels": [0.5, [0.2, 0.3]]}, {}).over(beneath)
    assert (target.prune, target.prune_split, target.fwp) == (None, None, {"unit": "quad"})
    assert Asked.of(*target.to_json().values()) == target
    assert Asked.of({"prune": 0.3}, {}).over(target).target is None
    whole = Asked(prune=0.3, finetune=TrainConfig(epochs=5))
    again = Asked.of(*whole.to_json().values())
    assert again.job().finetune == whole.job().finetune and again.job().finetune.distill is None
