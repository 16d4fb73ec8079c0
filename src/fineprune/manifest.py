"""What other commands read again of the files that `compress` and `bench --json` leave, and that an edited one still has it."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from fineprune.common.errors import RunError
from fineprune.common.form import Maybe, Within, require
from fineprune.compressor.bundle import MANIFEST, Bundle
from fineprune.compressor.masks import KINDS
from fineprune.models.objective import ACCURACY

STEPS = {
    "dense": "dense",
    "masked": "masked",
    "reconstructed": "reconstructed",
    "batchnorm_recalibrated": "BatchNorm\nchosen",
    "finetuned": "fine-tuned",
    "dense_finetuned": "dense,\nfine-tuned alike",
}
"""Keys of a manifest's accuracies, in order, and how they read on an axis."""


def final_accuracy(accuracy: dict[str, Any]) -> float | None:
    """Of the compressed network after the last step that was measured."""
    finetuned: float | None = accuracy.get("finetuned")
    return before_training(accuracy) if finetuned is None else finetuned


def before_training(accuracy: dict[str, Any]) -> float | None:
    """Of the compressed network after the last step before the fine-tuning."""
    last_first = ("batchnorm_recalibrated", "reconstructed", "masked")
    return next((accuracy[step] for step in last_first if accuracy.get(step) is not None), None)


def measured(accuracy: Mapping[str, Any]) -> str:
    """What the figures of a manifest's `accuracy` are: an accuracy, or what stands for it."""
    return str(accuracy.get("measure") or ACCURACY.name)


_SHARE = Within(float, -1, 2)
"""A fraction of something, give or take rounding."""
_FIGURE = Within(float, -1e18, 1e18)
"""An accuracy, or what a user's metric gives."""
_COUNT = Within(float, 0, 1e18)
_WHOLE = Within(int, 0, 2**31)
_SIDE = Within(int, 1, 2**15)
_TRAINING = Maybe(
    {
        "history": [{"epoch": _WHOLE, **dict.fromkeys(("validation_accuracy", "validation_figure"), Maybe(_FIGURE))}],
        "prune_schedule": Maybe({"name": str, "share": Maybe(_SHARE), "updates": Maybe(_WHOLE)}),
        "qat_epochs": Maybe(_WHOLE),
        "distill": Maybe({"share": _SHARE, "temperature": Within(float, 0, 1e9), "features": Maybe(_COUNT)}),
    }
)
_FACTS = {
    "model": Maybe({"name": str, "args": {str: (float, bool, str)}}),
    "data": Maybe(
        {
            **{"spec": str, "classes": [str], "mean": [float], "std": [float]},
            **{"validation": Maybe(_SHARE), "seed": Maybe(int), "image_size": Maybe(_SIDE)},
            **{"crop": Maybe(_SHARE), "channels": Maybe(_SIDE), "white": Maybe(float), "labels": Maybe(str)},
        }
    ),
    "input_shape": [_SIDE, _SIDE, _SIDE],
    "zero_weights": Maybe({"macs_dense": _COUNT, "macs_pruned": _COUNT}),
    "conv_macs_kept": _SHARE,
    "ratios": {key: {**{kind.name: _SHARE for kind in KINDS}, "common": Maybe(_SHARE)} for key in ("asked", "achieved")},
    "macs": {
        **dict.fromkeys(("macs", "macs_dense", "conv_macs", "conv_macs_dense", "thesis_ops", "thesis_ops_dense"), _COUNT),
        "layers": [
            {
                **{"name": str, "macs": _COUNT, "macs_dense": _COUNT},
                **dict.fromkeys(("weights", "weights_kept"), Maybe(_COUNT)),
                **{f"{kind.name}_kept": Maybe(_SHARE) for kind in KINDS},
            }
        ],
    },
    "accuracy": {
        **{step: Maybe(_FIGURE) for step in STEPS},
        "split": str,
        "samples": _WHOLE,
        **dict.fromkeys(("note", "measure", "unit"), Maybe(str)),
    },
    "training": {"finetune": _TRAINING, "dense_finetune": _TRAINING},
    "left_dense": Maybe([{"name": str, "reason": str}]),
    "settings": Maybe({}),
    "search": Maybe({"asked_ms": Maybe(_COUNT), "reference_ms": Maybe(_COUNT), "end": Maybe({"latency_ms": Maybe(_COUNT)})}),
    "packages": Maybe({str: str}),
    "machine": {},
}
"""The form of those facts of a manifest that are read again."""
_STRUCTURED = {"input_shape": Maybe([_SIDE]), "inputs": str, "forward": str}
"""Of a network that is called by a `forward` of its user: what stands in the place of a shape."""

_BARE = "give Bundle.of the facts {'input_shape': (C, H, W)} and save again, from which the rest is counted"
"""What to do about a bundle of one's own whose facts lack what all but loading needs."""
_LARGEST_INPUT = 2**24
"""Numbers in one input: 3x2364x2364."""

_LAYER_TIMES = Maybe(
    [{"name": str, "kernel": str, "reason": str, "kept": _SHARE, **dict.fromkeys(("dense_us", "engine_us", "int8_us"), Maybe(_COUNT))}]
)
_LATENCIES = {
    "rows": [
        {
            **{"runtime": str, "batch_size": _SIDE, "threads": _SIDE, "reliable": Maybe(bool)},
            **dict.fromkeys(("median_ms", "p25_ms", "p75_ms"), _COUNT),
        }
    ],
    **dict.fromkeys(("layers", "layers_int8"), _LAYER_TIMES),
    "file_bytes": Maybe({str: _COUNT}),
    "config": {"rounds": _WHOLE},
    "machine": {"cpu": str, "usable_cores": _WHOLE},
}


def read_bundle(folder: Path | str) -> Bundle:
    """`Bundle.load` of one that `compress` wrote: RunError where its manifest lacks what is read of it later."""
    bundle = Bundle.load(folder)
    check_facts(bundle, str(Path(folder) / MANIFEST))
    return bundle


def check_facts(bundle: Bundle, where: str) -> None:
    """RunError where the facts of `bundle` lack what is read of them later."""
    bare = not {"input_shape", "inputs", "macs"} & bundle.facts.keys()
    remedy = _BARE if bare else "it was edited, compress again"
    structured = "inputs" in bundle.facts
    require(bundle.facts, {**_FACTS, **_STRUCTURED} if structured else _FACTS, where, remedy)
    if not structured and prod(bundle.facts["input_shape"]) > _LARGEST_INPUT:
        raise RunError(f"{where}: input_shape is {bundle.facts['input_shape']}, too large for any network; {remedy}")


def masked_meanwhile(facts: dict[str, Any]) -> str:
    """By which schedule masks came during the fine-tuning, in brackets; empty where they came at once."""
    schedule = ((facts.get("training") or {}).get("finetune") or {}).get("prune_schedule")
    if not schedule:
        return ""
    over = f"over the first {schedule['share']:.0%}" if schedule.get("share") is not None else "over the run"
    updates = schedule.get("updates")
    return f" (masks came in {updates} updates {over})" if updates else f" (masks were learned {over})"


def taught(facts: dict[str, Any]) -> str:
    """How the fine-tuning learned from the dense network, in brackets; empty where it did not."""
    distill = ((facts.get("training") or {}).get("finetune") or {}).get("distill")
    if not distill:
        return ""
    features = f", features {distill['features']:g}" if distill.get("features") else ""
    return f" (learned from the dense network: {distill['share']:g} of the loss, temperature {distill['temperature']:g}{features})"


def on_grids(facts: dict[str, Any]) -> str:
    """How many epochs of the fine-tuning were quantisation-aware, in brackets; empty where none was."""
    epochs = ((facts.get("training") or {}).get("finetune") or {}).get("qat_epochs")
    last = "epoch" if epochs == 1 else f"{epochs} epochs"
    return f" (the last {last} on int8 grids)" if epochs else ""


def zeros_pruned(facts: dict[str, Any]) -> list[tuple[str, float]]:
    """(what, fraction of the convolution multiply-adds) that masks drop though it was no work: weights that were zero before."""
    pruned = (facts.get("zero_weights") or {}).get("macs_pruned", 0) / max(facts["macs"]["conv_macs_dense"], 1)
    return [("with weights that were zero before", pruned)] if pruned >= _SHOWN else []


_SHOWN = 0.0005
"""The least fraction that shows in a percentage of one decimal."""


def check_latencies(latencies: Any, path: Path) -> None:
    """RunError where what `path` held is no BenchmarkReport as JSON."""
    remedy = "it holds no latencies, or was edited; write it by `fineprune bench --json`"
    require(latencies, _LATENCIES, str(path), remedy)
    if not latencies["rows"]:
        raise RunError(f"{path}: rows is empty; {remedy}")
