"""What each way to compress keeps of the accuracy: recipes by share pruned, epochs and seed, beside the dense network trained alike.

    python benchmarks/recipes.py [--data SPEC] [--checkpoint FILE] [--recipes NAME ...] [--prune R ...] [--epochs N ...] [--seeds N ...]
                                 [--runs FOLDER] [--json FILE] [--collect]

A run is `fineprune.compress` on the network; it ends in a file of its own in the folder of runs and resumes where it was interrupted, so
that a table may take several nights (--collect makes it of what is there so far). Several processes may share the folder. Epochs are of
the whole training split, less the validation split, on which the weights of the best epoch are chosen; the test split is measured only.
Without epochs nothing is trained. The dense network (recipe "dense") is trained by the same settings, for comparison; the recipe "picked"
names no preset.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from shared_folder import add_options, claimed

from fineprune.common.files import read_json, write_json
from fineprune.common.progress import Lines
from fineprune.compression import compress
from fineprune.export.machine import machine_facts
from fineprune.job import finetune_config
from fineprune.models.data import ImageData, load_data
from fineprune.models.training import TrainConfig, evaluate, train
from fineprune.models.zoo import ModelSpec
from fineprune.models.zoo.registry import parse_args
from fineprune.networks import open_model

DENSE = "dense"
_OBS = {"preset": "obs", "fwp": {"criterion": "obs"}, "prune_schedule": "one-shot", "reconstruct": True}
_OBC = {**_OBS, "fwp": {"criterion": "obc"}}
_THESIS = {"preset": "thesis", "reconstruct": False}
RECIPES: dict[str, dict[str, Any]] = {
    "picked": {},
    "taylor": {"preset": "taylor", "reconstruct": False},
    "taylor+distill": {"preset": "taylor", "reconstruct": False, "distill": 0.9},
    "taylor+reconstruct": {"preset": "taylor", "reconstruct": True},
    "taylor+reconstruct+distill": {"preset": "taylor", "reconstruct": True, "distill": 0.9},
    "fisher+reconstruct": {"preset": "taylor", "reconstruct": True, "fwp": {"criterion": "fisher"}},
    "fisher+reconstruct+distill": {"preset": "taylor", "reconstruct": True, "distill": 0.9, "fwp": {"criterion": "fisher"}},
    "obs+reconstruct": _OBS,
    "obs+reconstruct+distill": {**_OBS, "distill": 0.9},
    "taylor-common+reconstruct": {"preset": "taylor", "reconstruct": True, "prune_split": "common"},
    "obs-common+reconstruct": {**_OBS, "prune_split": "common"},
    "obs+rounds": {**_OBS, "prune_schedule": "rounds"},
    "obs+rounds+distill": {**_OBS, "prune_schedule": "rounds", "distill": 0.9},
    "obs+rounds8+distill": {**_OBS, "prune_schedule": {"name": "rounds", "rounds": 8}, "distill": 0.9},
    "obc+reconstruct": _OBC,
    "obc+rounds": {**_OBC, "prune_schedule": "rounds"},
    "obc+reconstruct+distill": {**_OBC, "distill": 0.9},
    "obc+rounds+distill": {**_OBC, "prune_schedule": "rounds", "distill": 0.9},
    "obs-blocks+rounds": {**_OBS, "prune_schedule": "rounds", "part": "ffp"},
    "obs-channel+rounds": {**_OBS, "prune_schedule": "rounds", "fwp": {"share": "channel"}},
    "obs-group+reconstruct": {**_OBS, "fwp": {"share": "group", "lanes": 8}},
    "taylor+rounds+distill": {"preset": "taylor", "reconstruct": True, "prune_schedule": "rounds", "distill": 0.9},
    "obs-pair+rounds": {**_OBS, "prune_schedule": "rounds", "fwp": {"criterion": "obs", "unit": "pair"}},
    "obs-quad+reconstruct": {**_OBS, "fwp": {"criterion": "obs", "unit": "quad"}},
    "obs-quad+reconstruct+distill": {**_OBS, "distill": 0.9, "fwp": {"criterion": "obs", "unit": "quad"}},
    "obs-quad+rounds": {**_OBS, "prune_schedule": "rounds", "fwp": {"criterion": "obs", "unit": "quad"}},
    "obs-quad+rounds+distill": {**_OBS, "prune_schedule": "rounds", "distill": 0.9, "fwp": {"criterion": "obs", "unit": "quad"}},
    "obc-quad+rounds": {**_OBC, "prune_schedule": "rounds", "fwp": {"criterion": "obc", "unit": "quad"}},
    "obc-quad+rounds+distill": {**_OBC, "prune_schedule": "rounds", "distill": 0.9, "fwp": {"criterion": "obc", "unit": "quad"}},
    "obs-row+rounds": {**_OBS, "prune_schedule": "rounds", "fwp": {"criterion": "obs", "unit": "row"}},
    "thesis": _THESIS,
    "thesis-layer": {**_THESIS, "ffp": {"scope": "layer"}},
    "thesis-taylor-blocks": {**_THESIS, "ffp": {"criterion": "taylor", "scope": "global"}},
}
"""Name -> arguments of `compress` beside the share, the epochs and the seed; part: what loses the share, where not what the preset says."""
STAGES = ("dense", "masked", "reconstructed", "batchnorm_recalibrated", "finetuned")


def main() -> None:
    arguments = _parse()
    if not arguments.collect:
        torch.set_num_threads(arguments.threads)
        data = load_data(arguments.data)
        for job in _jobs(arguments):
            _run(job, data, arguments)
    runs = [read_json(path) for path in sorted(arguments.runs.glob("*.json"))]
    print(table(runs))
    if arguments.json:
        write_json(arguments.json, {"machine": machine_facts(), "runs": runs})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", metavar="SPEC", help="The data set, as `fineprune --data` takes it.")
    parser.add_argument("--model", default="resnet20", metavar="NAME", help="Compress this network.")
    parser.add_argument("--model-args", nargs="*", default=["width=16", "shortcut=A"], metavar="KEY=VALUE", help="Give it these arguments.")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="Start from the weights of this file.")
    parser.add_argument(
        "--recipes", nargs="+", choices=[DENSE, *RECIPES], default=[DENSE, *RECIPES], metavar="NAME", help="Compare only these recipes."
    )
    parser.add_argument(
        "--prune", nargs="+", type=float, default=[0.45, 0.6, 0.72, 0.8], metavar="R", help="Prune these shares of the multiply-adds."
    )
    parser.add_argument("--epochs", nargs="+", type=int, default=[0, 1, 4], metavar="N", help="Epochs of fine-tuning.")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1], metavar="N", help="Seeds of the calibration samples and of fine-tuning."
    )
    parser.add_argument("--samples", type=int, metavar="N", help="Calibrate on so many images (default: all).")
    parser.add_argument("--device", default="auto", help="Where to compute, as `fineprune --device` takes it.")
    add_options(parser, "recipes")
    return parser.parse_args()


def _jobs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Short runs first."""
    for epochs in arguments.epochs:
        for seed in arguments.seeds:
            for recipe in arguments.recipes:
                for prune in arguments.prune if recipe != DENSE else [0.0]:
                    yield {"recipe": recipe, "prune": prune, "epochs": epochs, "seed": seed}


def _run(job: dict[str, Any], data: ImageData, arguments: argparse.Namespace) -> None:
    name = "{recipe}-{prune:g}-{epochs}-{seed}".format(**job)
    path = arguments.runs / f"{name}.json"
    with claimed(path.with_suffix(".lock")) as mine:
        if not mine or path.exists():
            return
        print(name, flush=True)
        started = time.perf_counter(), time.process_time()
        accuracy = (_dense if job["recipe"] == DENSE else _compressed)(job, data, arguments, arguments.runs / "work" / name)
        spent = {"seconds": time.perf_counter() - started[0], "processor_seconds": time.process_time() - started[1]}
        asked = {key: getattr(arguments, key) for key in ("data", "model", "model_args", "samples", "threads", "device", "training")}
        write_json(path, {**job, "accuracy": accuracy, **spent, **asked, "machine": machine_facts()})


def _compressed(job: dict[str, Any], data: ImageData, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    changes = dict(RECIPES[job["recipe"]])
    part = changes.pop("part", None)
    share = {"prune": job["prune"]} if part is None else {part: job["prune"]}
    where = {"checkpoint": arguments.checkpoint, "samples": arguments.samples, "output": folder}
    training: dict[str, Any] = {"epochs": job["epochs"]}
    if arguments.training and job["epochs"]:
        training = {"finetune": _training(job, arguments, distill=changes.pop("distill", None))}
    bundle = compress(_spec(arguments), data, **share, seed=job["seed"], device=arguments.device, **training, **where, **changes)
    return {name: value for name, value in bundle.facts["accuracy"].items() if isinstance(value, float)}


def _dense(job: dict[str, Any], data: ImageData, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    model = open_model(_spec(arguments), checkpoint=arguments.checkpoint, data=data, progress=Lines()).model
    accuracy = {"dense": evaluate(model, data.test, device=arguments.device).accuracy}
    if training := _training(job, arguments):
        train(model, data, training, output=folder, device=arguments.device, progress=Lines())
        accuracy["finetuned"] = evaluate(model, data.test, device=arguments.device).accuracy
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    return accuracy


def _training(job: dict[str, Any], arguments: argparse.Namespace, **others: Any) -> TrainConfig | None:
    return finetune_config(epochs=job["epochs"], seed=job["seed"], **arguments.training, **others)


def _spec(arguments: argparse.Namespace) -> ModelSpec:
    return ModelSpec(name=arguments.model, args=parse_args(arguments.model_args))


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: test accuracy in percent after each stage, means over seeds, and points against the dense network trained alike."""
    lines = ["| epochs | pruned | recipe | seeds | " + " | ".join(STAGES) + " | to dense | minutes |", "|" + "---|" * (6 + len(STAGES))]
    groups: dict[tuple[int, float, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["epochs"], run["prune"], run["recipe"]), []).append(run)
    for (epochs, prune, recipe), found in sorted(groups.items()):
        dense = {run["seed"]: last(run) for run in groups.get((epochs, 0.0, DENSE), [])}
        differences = [100 * (last(run) - dense[run["seed"]]) for run in found if run["seed"] in dense]
        cells = [mean([100 * run["accuracy"][stage] for run in found if stage in run["accuracy"]]) for stage in STAGES]
        cells += [mean(differences, "+.2f"), f"{statistics.mean(run['seconds'] for run in found) / 60:.1f}"]
        lines.append(f"| {epochs} | {prune:.0%} | {recipe} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def last(run: dict[str, Any]) -> float:
    """The accuracy that a run ends with."""
    return float(next(run["accuracy"][stage] for stage in STAGES[::-1] if stage in run["accuracy"]))


def mean(values: list[float], form: str = ".2f") -> str:
    """Of no values: nothing."""
    return format(statistics.mean(values), form) if values else ""


if __name__ == "__main__":
    main()
