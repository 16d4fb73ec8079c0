"""What other commands read again of the files that `compress` and `bench --json` leave, and that an edited one still has it."""

from pathlib import Path
from typing import Any

from .common.errors import RunError
from .common.form import Maybe, require
from .compressor.bundle import MANIFEST, Bundle

STEPS = {
    "dense": "dense",
    "masked": "masked",
    "batchnorm_recalibrated": "BatchNorm\nchosen",
    "finetuned": "fine-tuned",
    "dense_finetuned": "dense,\nfine-tuned alike",
}
"""Keys of a manifest's accuracies, in order, and how they read on an axis."""

_TRAINING = Maybe({"history": [{"epoch": int, "validation_accuracy": Maybe(float)}]})
_FACTS = {
    "model": Maybe({"name": str, "args": {str: (float, bool, str)}}),
    "data": Maybe(
        {
            **{"spec": str, "classes": [str], "mean": [float], "std": [float]},
            **{"validation": Maybe(float), "seed": Maybe(int), "image_size": Maybe(int)},
            **{"crop": Maybe(float), "channels": Maybe(int), "white": Maybe(float), "labels": Maybe(str)},
        }
    ),
    "input_shape": [int, int, int],
    "measured_on": Maybe(str),
    "zero_weights": Maybe({"macs_dense": int, "macs_pruned": int}),
    "conv_macs_kept": float,
    "ratios": {"asked": {"ffp": float, "fwp": float}, "achieved": {"ffp": float, "fwp": float}},
    "macs": {
        **dict.fromkeys(("macs", "macs_dense", "conv_macs", "conv_macs_dense", "thesis_ops", "thesis_ops_dense"), float),
        "layers": [{"name": str, "macs": float, "macs_dense": float}],
    },
    "accuracy": {**{step: Maybe(float) for step in STEPS}, "split": str, "samples": int},
    "training": {"finetune": _TRAINING, "dense_finetune": _TRAINING},
    "machine": {},
}
"""The form of those facts of a manifest that are read again."""

NO_SHAPE = "give Bundle.of the facts {'input_shape': (C, H, W)} and save again, from which the rest is counted"
"""What to do about a bundle of one's own whose facts lack what all but loading needs."""

_LATENCIES = {
    "rows": [{"runtime": str, "batch_size": int, "threads": int, **dict.fromkeys(("median_ms", "p25_ms", "p75_ms"), float)}],
    "config": {"rounds": int},
    "machine": {"cpu": str, "usable_cores": int},
}


def read_bundle(folder: Path | str) -> Bundle:
    """`Bundle.load` of one that `compress` wrote: RunError where its manifest lacks what is read of it later."""
    bundle = Bundle.load(folder)
    remedy = "it was edited, compress again" if {"input_shape", "macs"} & bundle.facts.keys() else NO_SHAPE
    require(bundle.facts, _FACTS, str(Path(folder) / MANIFEST), remedy)
    return bundle


def check_latencies(latencies: Any, path: Path) -> None:
    """RunError where what `path` held is no BenchmarkReport as JSON."""
    remedy = "it holds no latencies, or was edited; write it by `fineprune bench --json`"
    require(latencies, _LATENCIES, str(path), remedy)
    if not latencies["rows"]:
        raise RunError(f"{path}: rows is empty; {remedy}")
