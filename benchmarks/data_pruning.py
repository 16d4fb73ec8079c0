"""What leaving samples out of epochs saves, and what it costs: every policy beside the regular run and one of equal time.

    python benchmarks/data_pruning.py [--quick] [--json FILE] [--data SPEC] [--networks NAME[:KEY=VALUE,...] ...] [--epochs N]
                                      [--samples N] [--seeds N ...] [--rows NAME ...] [--runs FOLDER] [--collect]

Each run ends in a file of its own in the folder of runs and resumes where it was interrupted; the table is made of those files, also
of those that are there so far (--collect trains nothing). Time is the processor time of training and validation (wall time stands
beside it: machines are shared); saved time and accuracy differences are paired by seed. "in run" is the saving that a run measures by
itself, against its own full epochs: the figure to compare with the predicted one, and the one that goals are judged by.

The window of fine-pruning, 60 of the source's 160 epochs, and its start shrink with --epochs. `equal-N` is the regular run with its
whole schedule, milestones too, squeezed into N % of the epochs: a policy is worth something where it beats the one that visits at least
as many samples.

Goal: at least 24.46 % of the time saved and at most 0.4 points of accuracy lost; hoped for: 40 % and 0.1 points.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fineprune.common.files import read_json, write_json
from fineprune.common.progress import Bars
from fineprune.export.machine import machine_facts
from fineprune.models.data import ImageData, load_data
from fineprune.models.training import TrainConfig, evaluate, train
from fineprune.models.training.sampling.time_model import predicted_saving, simulate, trained_batches
from fineprune.models.zoo import ModelSpec, build
from fineprune.models.zoo.registry import parse_args
from fineprune.networks import completed

SOURCE: dict[str, tuple[str, str, str, str]] = {
    "lenet": ("11.80", "18.67", "75.15", "74.72"),
    "vgg13": ("7.40", "13.75", "93.92", "93.56"),
    "vgg16": ("7.56", "13.93", "93.79", "93.44"),
    "vgg19": ("7.65", "14.72", "93.35", "93.30"),
    "resnet18-3stage": ("12.76", "21.43", "91.25", "91.16"),
    "resnet34-3stage": ("13.43", "21.86", "92.86", "92.85"),
    "resnet50-3stage": ("13.92", "22.88", "93.75", "93.46"),
    "wrn10": ("13.73", "22.54", "92.13", "91.78"),
    "wrn16": ("13.81", "23.37", "94.22", "94.20"),
    "wrn22": ("14.29", "24.46", "95.08", "94.71"),
}
"""The source's table, CIFAR-10: time saved by pruning, and with the automatic rate, in percent; accuracy regular and pruned."""

STRONG = {"name": "fine-pruning", "fraction": 0.45}
AUTO = {"schedule": "auto", "auto_lr": {"interval": 2}}
"""i in proportion to the source's 10 of 160 epochs would be 1 or 2."""
ROWS: dict[str, dict[str, Any]] = {
    "regular": {},
    "fine-pruning": {"policy": "fine-pruning"},
    "strong": {"policy": STRONG},
    "strong+auto-lr": {"policy": STRONG, **AUTO},
    "infobatch": {"policy": "infobatch"},
    "infobatch+auto-lr": {"policy": "infobatch", **AUTO},
    "random": {"policy": {**STRONG, "name": "random"}},
    "auto-lr": AUTO,
    "equal-75": {"epochs_share": 0.75},
    "equal-60": {"epochs_share": 0.60},
}
"""Row -> what differs from the regular run. `strong` prunes 45 % instead of the source's 25 %; `random` has its budget."""

GOALS = {"goal": (24.46, 0.4), "hoped for": (40.0, 0.1)}
LR = {"lenet": 0.05, "vgg13": 0.05, "vgg16": 0.05, "vgg19": 0.05}


def main() -> None:
    arguments = _parse()
    if not arguments.collect:
        torch.set_num_threads(arguments.threads)
        data = smaller(load_data(arguments.data), arguments.samples)
        for network, seed, row in _jobs(arguments):
            _run(network, row, seed, data, arguments)
    runs = [read_json(path) for path in sorted(arguments.runs.glob("*.json"))]
    runs = [run for run in runs if run["settings"] == _settings(arguments) and run["row"] in arguments.rows]
    tables = {network: table([run for run in runs if run["network"] == network]) for network in arguments.networks}
    for network, rows in tables.items():
        print_table(network, rows, arguments)
    if arguments.json:
        facts = {"machine": machine_facts(), "load": os.getloadavg(), "settings": _settings(arguments), "goals": GOALS, "source": SOURCE}
        write_json(arguments.json, {**facts, "tables": tables, "runs": runs})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,500 images, 12 epochs, one seed: under five minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--data", default="fashion-mnist", metavar="SPEC")
    parser.add_argument("--networks", nargs="+", default=["lenet", "resnet18-3stage:width=8"], metavar="NAME", help=", ".join(SOURCE))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--samples", type=int, help="training images (validation shrinks alike; all test images stay)")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=Path, default=Path("runs/data-pruning"), metavar="FOLDER")
    parser.add_argument("--collect", action="store_true", help="make the table of the runs that are there")
    arguments = parser.parse_args()
    for network in arguments.networks:
        if network.partition(":")[0] not in SOURCE:
            parser.error(f"unknown network {network!r}; choose from {', '.join(SOURCE)} (with arguments: resnet18-3stage:width=8)")
    quick = arguments.quick
    arguments.epochs = arguments.epochs or (12 if quick else 20)
    arguments.samples = arguments.samples or (2500 if quick else None)
    arguments.seeds = arguments.seeds or ([0] if quick else [0, 1, 2])
    arguments.batch_size = arguments.batch_size or (64 if quick else 128)
    return arguments


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What runs must have in common to stand in one table."""
    return {name: getattr(arguments, name) for name in ("data", "epochs", "samples", "batch_size", "threads")}


def _jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """Seeds outermost, each beginning with another row: what else the machine does must not always meet the same one."""
    for seed in arguments.seeds:
        turn = 3 * seed % len(arguments.rows)
        for network in arguments.networks:
            yield from ((network, seed, row) for row in (*arguments.rows[turn:], *arguments.rows[:turn]))


def smaller(data: ImageData, samples: int | None) -> ImageData:
    """Of the training images the first `samples` of a fixed shuffle, of the validation images the same share."""
    if samples is None or samples >= len(data.train):
        return data
    share = samples / len(data.train)

    def part(split: Any, count: int) -> Any:
        return split.subset(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count].sort().values)

    return replace(data, train=part(data.train, samples), validation=part(data.validation, round(share * len(data.validation))))


def config_of(network: str, row: str, seed: int, epochs: int, batch_size: int) -> TrainConfig:
    """The source's recipe: SGD with momentum 0.9, a tenth of the rate after half and three quarters of the epochs."""
    changes = dict(ROWS[row])
    epochs = round(epochs * changes.pop("epochs_share", 1.0))
    schedule = {"schedule": "multistep", "milestones": (epochs // 2, epochs * 3 // 4)}
    if changes.get("schedule") == "auto":
        schedule = {}
    common = {"lr": LR.get(network.partition(":")[0], 0.1), "weight_decay": 5e-4, "warmup_epochs": 1.0}
    return TrainConfig(epochs=epochs, batch_size=batch_size, seed=seed, **common, **schedule, **changes)  # type: ignore[arg-type]


def _run(network: str, row: str, seed: int, data: ImageData, arguments: argparse.Namespace) -> None:
    """Train one cell of the table, unless its file is there."""
    settings = _settings(arguments)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{network.replace(':', '-')}_{row}_{seed}_{digest}"
    done, state = arguments.runs / f"{name}.json", arguments.runs / "state" / name
    if done.exists():
        return
    kind, _, given = network.partition(":")
    spec = completed(ModelSpec(name=kind, args=parse_args(given.split(",") if given else [])), data.input_shape, data)
    model = build(spec, seed=seed)
    config = config_of(network, row, seed, arguments.epochs, arguments.batch_size)
    progress = Bars()
    progress.log(f"{network}, {row}, seed {seed}")
    result = train(model, data, config, output=state, device="cpu", progress=progress)
    test = evaluate(model, data.test, device="cpu")
    history = result.history
    visits, full = [record.visits for record in history], len(data.train)
    timing = {
        "batch_s": sum(r.seconds - r.validation_seconds - r.policy_seconds for r in history)
        / sum(trained_batches(visited, config.batch_size) for visited in visits),
        "validation_s": statistics.fmean(r.validation_seconds for r in history),
        "overhead_s": sum(r.policy_seconds for r in history),
    }
    # What the schedule alone tells, in terms of the regular run of `--epochs`: epochs that the automatic rate did not need count as saved.
    planned = visits if config.policy.name == "infobatch" else simulate(config.policy, epochs=config.epochs, samples=full)[: len(history)]
    write_json(
        done,
        {
            **{"network": network, "row": row, "seed": seed, "settings": settings, "config": config.to_json(), "model": spec.to_json()},
            **{"samples": {part: len(getattr(data, part)) for part in ("train", "validation", "test")}, "machine": machine_facts()},
            **{"test_accuracy": test.accuracy, "last_validation_accuracy": history[-1].validation_accuracy},
            **{"epochs_run": len(history), "visits": sum(visits), "visits_share": sum(visits) / (arguments.epochs * full)},
            **{"cpu_s": sum(r.cpu_seconds for r in history), "wall_s": result.seconds},
            **{"validation_s": sum(r.validation_seconds for r in history), "policy_s": sum(r.policy_seconds for r in history)},
            "predicted": predicted_saving(planned, epochs=arguments.epochs, samples=full, batch_size=config.batch_size, **timing),
            **{"saving_of_run": result.to_json()["saving"], "history": result.to_json()["history"], "load": os.getloadavg()},
        },
    )
    shutil.rmtree(state, ignore_errors=True)


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a row: means over seeds, time saved and accuracy lost paired with the regular run of the same seed."""
    regular = {run["seed"]: run for run in runs if run["row"] == "regular"}
    rows = []
    for name in ROWS:
        own = [run for run in runs if run["row"] == name and run["seed"] in regular]
        if not own:
            continue
        accuracies = [100 * run["test_accuracy"] for run in own]
        saved = {kind: [100 * (1 - run[kind] / regular[run["seed"]][kind]) for run in own] for kind in ("cpu_s", "wall_s")}
        differences = [100 * (run["test_accuracy"] - regular[run["seed"]]["test_accuracy"]) for run in own]
        rows.append(
            {
                **{"row": name, "seeds": len(own), "epochs": _mean(run["epochs_run"] for run in own)},
                **{"visits": 100 * _mean(run["visits_share"] for run in own), "cpu_s": _mean(run["cpu_s"] for run in own)},
                **{"saved": _mean(saved["cpu_s"]), "saved_wall": _mean(saved["wall_s"])},
                **{"predicted": 100 * _mean(run["predicted"] for run in own), "in_run": _in_run(own)},
                "overhead_s": statistics.median(run["policy_s"] for run in own),
                **{"accuracy": _mean(accuracies), "spread": statistics.stdev(accuracies) if len(own) > 1 else None},
                **{"difference": _mean(differences), "difference_spread": statistics.stdev(differences) if len(own) > 1 else None},
            }
        )
    return [{**row, **_verdict(row, rows)} for row in rows]


def _in_run(runs: list[dict[str, Any]]) -> float | None:
    """Processor time saved as each run measures it on its own full epochs, so under the same load as the pruned ones."""
    measured = [run["saving_of_run"]["measured_cpu"] for run in runs if run["saving_of_run"] is not None]
    return 100 * _mean(measured) if len(measured) == len(runs) and None not in measured else None


def _verdict(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Goals met, and the lead over the equal-time run of at least as many visits: without one, the policy may claim nothing."""
    measured = row["saved"] if row["in_run"] is None else row["in_run"]
    met = [goal for goal, (saved, lost) in GOALS.items() if measured >= saved and row["difference"] >= -lost]
    rivals = [other for other in rows if other["row"].startswith("equal") and other["visits"] >= row["visits"] - 0.5]
    rival = min(rivals, key=lambda other: other["visits"], default=None)
    if row["row"] == "regular" or row["row"].startswith("equal") or rival is None:
        return {"met": met, "rival": None, "over_rival": None}
    return {"met": met, "rival": rival["row"], "over_rival": row["accuracy"] - rival["accuracy"]}


def print_table(network: str, rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """What was run, the table, and beside it the source's figures."""
    images = arguments.samples or "all"
    print(f"\n{network} on {arguments.data}: {images} training images, {arguments.epochs} epochs, batch {arguments.batch_size}")
    print(
        f"{'row':18} {'seeds':>5} {'epochs':>6} {'visits %':>8} {'CPU s':>7} {'saved %':>8} {'(wall)':>7} {'in run':>7} {'predicted':>9} "
        f"{'overhead s':>10} {'accuracy %':>14} {'difference':>14}  goals, over equal time"
    )
    for row in rows:
        spread, change = (f"± {row[key]:.2f}" if row[key] is not None else "" for key in ("spread", "difference_spread"))
        rival = f"{row['over_rival']:+.2f} over {row['rival']}" if row["rival"] else ""
        in_run = "" if row["in_run"] is None else f"{row['in_run']:.2f}"
        print(
            f"{row['row']:18} {row['seeds']:5} {row['epochs']:6.1f} {row['visits']:8.1f} {row['cpu_s']:7.1f} {row['saved']:8.2f} "
            f"{row['saved_wall']:7.2f} {in_run:>7} {row['predicted']:9.2f} {row['overhead_s']:10.2f} {row['accuracy']:7.2f} {spread:6} "
            f"{row['difference']:+7.2f} {change:6}  {', '.join(filter(None, [*row['met'], rival]))}"
        )
    pruned, automatic, before, after = SOURCE[network.partition(":")[0]]
    print(f"source (CIFAR-10, full size, one run): pruned {pruned} % saved, + automatic rate {automatic} %, accuracy {before} -> {after}")


def _mean(values: Any) -> float:
    return statistics.fmean(values)


if __name__ == "__main__":
    main()
