"""From a bundle's manifest back to the recipe that makes it again."""

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from fineprune.common.errors import FinepruneError
from fineprune.common.files import as_stored

from ..recipe import job_of

CHECKPOINT = "model.safetensors"
"""Stands in a recipe for the trained network, whose file a manifest does not name."""


def recipe_of(facts: Mapping[str, Any]) -> str | None:
    """A recipe as TOML with a checkpoint to fill in, whose compression has the settings of `facts`; of a target, the ratios that were found
    for it. None where there is none: the network or the data have no name, or the settings cannot be written as a recipe."""
    model, data, settings = (facts.get(key) for key in ("model", "data", "settings"))
    if not model or not data or not settings:
        return None
    try:
        tables = {"model": {**model, "checkpoint": CHECKPOINT}, "data": _data(data), **_asked(settings)}
        lines = "\n\n".join("\n".join([f"[{name}]", *_entries(table)]) for name, table in tables.items())
        wanted = {key: value for key, value in settings.items() if key != "target"}
        same = as_stored(job_of(tomllib.loads(lines)).to_json()) == as_stored(wanted)
    except (FinepruneError, KeyError, TypeError, ValueError, AttributeError, RecursionError):  # of an edited manifest
        return None
    return lines if same else None


_DATA = ("spec", "validation", "seed", "image_size", "crop", "channels", "white", "mean", "std", "labels")


def _data(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in _DATA if facts.get(key) is not None}


def _asked(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tables [compress] and [finetune]."""
    calibration = settings["calibration"]
    compress = {
        "preset": settings["preset"],
        "ffp": settings["ffp"],
        "fwp": settings["fwp"],
        "samples": calibration["samples"],
        "calibration_batch_size": calibration["batch_size"],
        "seed": calibration["seed"],
        "reconstruct": settings["reconstruct"] or False,
        "prune_schedule": settings.get("prune_schedule") or "one-shot",
        "batchnorm_samples": settings["batchnorm_samples"],
        "compare_dense": settings["compare_dense"],
    }
    if settings.get("common"):
        compress |= {"prune": settings["common"], "prune_split": "common"}
        for kind in ("ffp", "fwp"):
            compress[kind] = {key: value for key, value in settings[kind].items() if key != "ratio"}
    return {"compress": compress, "finetune": settings["finetune"] or {"epochs": 0}}


def _entries(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not _absent(value)]


def _absent(value: Any) -> bool:
    """None, which TOML does not have, and what is empty, which is the default everywhere."""
    return value is None or value == {} or value == []


def _value(value: Any) -> str:
    """As TOML."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_entries(value))} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)  # text, numbers and true or false read alike in both


def _key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else json.dumps(key)
