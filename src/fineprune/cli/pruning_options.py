"""The options of what is pruned and how it is chosen, and the settings that they become."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from fineprune.common.errors import UsageError

from .sections import CALIBRATION, PRUNING, RESEARCH, TARGET, stack
from .training_options import typed_pairs


class _Ratio(click.ParamType):
    """A number in [0,1), which the settings check; what is written in per cent is translated."""

    name = "ratio"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(value)
        except ValueError:
            pass
        try:
            self.fail(f"{value} is written {float(str(value).rstrip(' %')) / 100:g}.", param, ctx)
        except ValueError:
            self.fail(f"{value!r} is no fraction such as 0.3.", param, ctx)


class _Method(click.Option):
    """An option that names a pruning method; its help lists those that there are, and imports them only to be shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from fineprune.compressor.criteria import criteria

        record = super().get_help_record(ctx)
        kind = (self.name or "").partition("_")[0]
        return record and (record[0], f"{record[1]} There are {', '.join(method.name for method in criteria(kind))}.")


split_option = click.option(
    "--prune-split",
    default="preset",
    show_default=True,
    metavar="NAME",
    help="What divides --prune between blocks and weights: the preset (fixed ratios) or common (one list by worth per multiply-add).",
)
_ratios = stack(
    click.option(
        "--prune", "ratio", type=_Ratio(), metavar="RATIO", help="The fraction of the convolutions' multiply-adds to remove, e.g. 0.7."
    ),
    split_option,
    click.option(
        "--ffp",
        "ffp_ratio",
        type=_Ratio(),
        metavar="RATIO",
        help="Instead of --prune: the fraction of feature-map blocks to remove, in [0,1).",
    ),
    click.option(
        "--fwp",
        "fwp_ratio",
        type=_Ratio(),
        metavar="RATIO",
        help="Instead of --prune: the fraction of the remaining weights to remove, in [0,1).",
    ),
    click.option(
        "--method",
        metavar="NAME",
        help="Instead of --prune and --fwp: remove weights or filters as this method's source does, e.g. fpgm; --ffp comes on top. "
        "See `fineprune methods`.",
    ),
    click.option("--rate", type=_Ratio(), metavar="RATIO", help="The fraction that --method removes, as its source counts it, e.g. 0.4."),
    section=PRUNING,
)
_ranking = stack(
    click.option("--include", multiple=True, metavar="GLOB", help="Prune only layers whose names match, e.g. 'layer3.*' (repeatable)."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave layers dense whose names match, e.g. 'conv1' (repeatable)."),
    click.option(
        "--preset",
        metavar="NAME",
        help="How to choose what is removed: obs, taylor, or thesis (the ranking of the thesis behind the methods). "
        "Where none is named, --epochs decides this and what else is left open, and a line says what.",
    ),
    section=PRUNING,
)
_layer_ratios = stack(
    click.option("--ffp-layer", multiple=True, metavar="GLOB=RATIO", help="Another FFP ratio for these layers (repeatable)."),
    click.option("--fwp-layer", multiple=True, metavar="GLOB=RATIO", help="Another FWP ratio for these layers (repeatable)."),
    section=RESEARCH,
)
_methods = stack(
    click.option(
        "--ffp-criterion", cls=_Method, metavar="NAME", help="Method that ranks blocks, of those that `fineprune methods` explains."
    ),
    click.option("--ffp-scope", help="Blocks that are ranked together: global, channel, layer or position."),
    click.option("--ffp-propagate", help="What deeper layers see while blocks are calibrated: masked or dense."),
    click.option(
        "--ffp-softmax/--no-ffp-softmax",
        default=None,
        help="Put a channel's scores of a sample through a softmax first, as the thesis' listing does (criteria that rank each sample).",
    ),
    click.option("--ffp-within", help="What a sample's best blocks are taken of, likewise: channel or layer."),
    click.option("--ffp-count", help="Likewise: count how often a block is among them (top), or add up scores (sum)."),
    click.option(
        "--ffp-sample-ratio", type=_Ratio(), metavar="RATIO", help="Likewise: another ratio than FFP's for a sample's best blocks."
    ),
    click.option(
        "--fwp-criterion", cls=_Method, metavar="NAME", help="Method that ranks weights, of those that `fineprune methods` explains."
    ),
    click.option("--fwp-scope", help="Weights that are ranked together: global, kernel, group, channel, filter or layer."),
    section=RESEARCH,
)
_unit = stack(
    click.option(
        "--fwp-unit", help="What goes together: weight (each by itself), pair or quad (2 or 4 input channels), row (of a kernel)."
    ),
    section=RESEARCH,
)
_weights = stack(
    click.option("--fwp-order", help="Which channels make a pair or a quad: the best that are found (cluster), or neighbours (file)."),
    click.option(
        "--fwp-share", help="Which filters drop a tap together (scopes layer and global): filter (each alone), group, or channel (all)."
    ),
    click.option("--lanes", type=int, help="How many filters form a group (scope or share `group` only)."),
    click.option(
        "--layer-type",
        "layer_types",
        multiple=True,
        metavar="NAME",
        help="Prune the weights of layers of this type: conv2d (the default), conv1d, conv_transpose2d, linear (repeatable).",
    ),
    click.option("--pointwise", help="What becomes of 1x1 kernels: they are ranked within a filter (filter) or left dense (exempt)."),
    section=RESEARCH,
)
ranking_options = stack(_ranking, _methods, _unit, _weights)
prune_options = stack(_ratios, _ranking, _layer_ratios, _methods, _unit, _weights)
several_options = stack(
    click.option(
        "--prune",
        "ratios",
        type=_Ratio(),
        multiple=True,
        metavar="RATIO",
        help="A fraction of the convolutions' multiply-adds to remove; without one, 0.3, 0.5, 0.7 and 0.8 (repeatable).",
    ),
    click.option(
        "--unit",
        "--fwp-unit",
        "units",
        multiple=True,
        metavar="NAME",
        help="Remove weights by this unit at every ratio: weight (each by itself), pair, quad (what int8 skips) or row (repeatable).",
    ),
    stack(split_option, section=PRUNING),
    _ranking,
    _layer_ratios,
    _methods,
    _weights,
    section=PRUNING,
)
level_option = click.option(
    "--level",
    "levels",
    multiple=True,
    metavar="RATIO",
    help="What a layer's weights may be pruned by, beside not at all: 0.5, or 0.3+0.5 for blocks, too; without one, "
    "by 0.2 to 0.9 in tenths, and 0.95 (repeatable).",
)
machine_options = stack(
    click.option("--int8", is_flag=True, default=None, help="Time the file in eight-bit integers; weights are then dropped by quads."),
    click.option("--threads", type=int, help="Time it on so many threads (default: 1)."),
    click.option("--batch", type=int, help="Time it on so many images at once (default: 1)."),
    level_option,
    section=TARGET,
)
target_options = stack(
    click.option(
        "--target-latency",
        metavar="TIME",
        help="Instead of --prune: how fast it is to run, 2.5ms, or 0.4x of the dense network's time in ONNX Runtime; the ratio of "
        "each layer is searched for.",
    ),
    click.option(
        "--target-macs", type=_Ratio(), metavar="RATIO", help="Instead: the fraction of the multiply-adds that may stay, searched alike."
    ),
    click.option(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="How much accuracy may be lost on validation samples: with a target, or alone, for the fastest that keeps it.",
    ),
    machine_options,
    click.option(
        "--times",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Times of the layers on another machine, which `fineprune profile` wrote there.",
    ),
    section=TARGET,
)
schedule_options = stack(
    click.option(
        "--prune-schedule",
        metavar="NAME",
        help="When masks come: one-shot (all before the fine-tuning), rounds (before it, and what stays is refitted in between), "
        "cubic (while it runs, and what was dropped may come back), each-epoch (all of them, chosen anew at every epoch), or asl "
        "(thresholds that are trained, of --method asl).",
    ),
    click.option(
        "--prune-schedule-arg",
        "schedule_args",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change a setting of the schedule: rounds=4, of cubic share=0.45 (of the run), updates=8, samples=1024, of "
        "each-epoch updates, samples, dropped=zeroed (or kept, trained: what becomes of what an update drops), "
        "or of asl share=0.8, strength=10, speed=0.01, smallest=1000 "
        "(repeatable).",
    ),
    section=PRUNING,
)
calibration_options = stack(
    click.option("--samples", type=int, help="Calibrate on so many training images, chosen by --seed (default: all)."),
    click.option("--calibration-batch-size", type=int, default=128, show_default=True, help="How many images calibration takes at a time."),
    section=CALIBRATION,
)


def schedule_settings(options: dict[str, Any]) -> dict[str, Any] | None:
    """When masks come, from the options given; None where none is."""
    changed = typed_pairs("--prune-schedule-arg", options["schedule_args"])
    name = options["prune_schedule"]
    return {"name": name or "one-shot", **changed} if name or changed else None


def prune_settings(options: dict[str, Any]) -> dict[str, Any]:
    """What is pruned and how it is ranked, as keys of a recipe's [compress], from the options given."""
    from ..asked import TARGET as KEYS

    target = {name: options.get(name) for name in KEYS} | {"levels": levels_of_options(options)}
    ratios = ("ratio", "ratios", "ffp_ratio", "fwp_ratio", "method", "rate", "target_latency", "target_macs", "max_drop", "front")
    if all(options.get(name) is None for name in ratios) and not options["ffp_layer"] and not options["fwp_layer"]:
        raise UsageError(
            "nothing to prune; give --prune, or --ffp and --fwp (fractions such as 0.3), or --ffp-layer and --fwp-layer, "
            "a --method, or a target"
        )
    settings = ranking_settings(options)
    settings["ffp"] |= {"ratio": options.get("ffp_ratio"), "per_layer": layer_ratios("--ffp-layer", options["ffp_layer"]) or None}
    settings["fwp"] |= {"ratio": options.get("fwp_ratio"), "per_layer": layer_ratios("--fwp-layer", options["fwp_layer"]) or None}
    whole = {
        "prune": options.get("ratio"),
        "prune_split": options["prune_split"],
        "method": options.get("method"),
        "rate": options.get("rate"),
    }
    return {**settings, **whole, **target}


def ranking_settings(options: dict[str, Any]) -> dict[str, Any]:
    """How what is pruned is ranked, without ratios."""
    layers = {"include": tuple(options["include"]) or None, "exclude": tuple(options["exclude"]) or None}
    return {
        "preset": options["preset"],
        "ffp": {
            "criterion": options["ffp_criterion"],
            "scope": options["ffp_scope"],
            "propagate": options["ffp_propagate"],
            **{name: options[f"ffp_{name}"] for name in ("softmax", "within", "count", "sample_ratio")},
            **layers,
        },
        "fwp": {
            "criterion": options["fwp_criterion"],
            "scope": options["fwp_scope"],
            "unit": options.get("fwp_unit"),
            "order": options["fwp_order"],
            "share": options["fwp_share"],
            "lanes": options["lanes"],
            "pointwise": options["pointwise"],
            "layer_types": tuple(options["layer_types"]) or None,
            **layers,
        },
    }


def levels_of_options(options: dict[str, Any]) -> list[Any] | None:
    """["0.5", "0.3+0.5"] -> [0.5, (0.3, 0.5)]; None where none is given."""
    found: list[Any] = []
    for text in options.get("levels") or ():
        try:
            ratios = [float(part) for part in text.split("+")]
        except ValueError:
            ratios = []
        if len(ratios) not in (1, 2):
            raise UsageError(f"--level is a weight ratio such as 0.5, or BLOCKS+WEIGHTS such as 0.3+0.5, got {text!r}")
        found.append(ratios[0] if len(ratios) == 1 else tuple(ratios))
    return found or None


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
