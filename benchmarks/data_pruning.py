"""What leaving samples out of epochs saves, and what it costs: every policy beside the regular run and one of equal time.

    python benchmarks/data_pruning.py [--quick] [--json FILE] [--data SPEC] [--networks NAME[:KEY=VALUE,...] ...] [--epochs N]
                                      [--samples N] [--seeds N ...] [--rows NAME ...] [--runs FOLDER] [--collect]

Each run ends in a file of its own in the folder of runs and resumes where it was interrupted; the table is made of those files, also
of those that are there so far (--collect trains nothing). Several processes may share the folder.

Time is the processor time of training and validation (wall time stands beside it: machines are shared); saved time and accuracy
differences are paired by seed. "in run" is the saving that a run measures by itself, against its own full epochs: the figure to compare
with the predicted one ("off" is the largest distance of any run), and the one that goals are judged by.

Fine-pruning leaves out the samples with the most high losses, as the source does; rows named NAME-easiest leave out those with the
fewest. Runs recorded before there was a choice, whose policy names no order, are of the latter kind and are labelled so.

The window of fine-pruning, 60 of the source's 160 epochs, and its start shrink with --epochs. Two baselines take N % of the time and prune
nothing: `stop-N` is the regular run stopped after N % of its epochs, `equal-N` has its whole schedule, milestones too, squeezed into them.
A policy is worth something where it beats the better one of those that visit at least as many samples.

Goal: at least 24.46 % of the time saved and at most 0.4 points of accuracy lost; hoped for: 40 % and 0.1 points.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fineprune.common.files import read_json, write_json
from fineprune.common.progress import Bars
from fineprune.export.machine import machine_facts
from fineprune.models.data import ImageData, load_data
from fineprune.models.training import TrainConfig, evaluate, train
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
LATE = {"name": "fine-pruning", "fraction": 0.55, "window": 1.0, "start": 0.5, "block": 1, "prune_epochs": 1}
AUTO = {"schedule": "auto", "auto_lr": {"interval": 2}}
"""i in proportion to the source's 10 of 160 epochs would be 1 or 2."""
_ROWS: dict[str, dict[str, Any]] = {
    "regular": {},
    "fine-pruning": {"policy": {"name": "fine-pruning"}},
    "strong": {"policy": STRONG},
    "strong+auto-lr": {"policy": STRONG, **AUTO},
    "infobatch": {"policy": "infobatch"},
    "infobatch+auto-lr": {"policy": "infobatch", **AUTO},
    "random": {"policy": {**STRONG, "name": "random"}},
    "late": {"policy": LATE},
    "late-stop": {"policy": LATE, "stopped": 0.80},
    "late-random": {"policy": {**LATE, "name": "random"}},
    "auto-lr": AUTO,
    "equal-75": {"squeezed": 0.75},
    "equal-60": {"squeezed": 0.60},
    "stop-75": {"stopped": 0.75},
    "stop-65": {"stopped": 0.65},
    "stop-60": {"stopped": 0.60},
}
"""Row -> what differs from the regular run. `strong` prunes 45 % instead of the source's 25 %; `random` has its budget.

`late` prunes in every epoch from the first milestone on, by the counts of all epochs before; its window and start are shares of the epochs.
`late-stop` ends after 80 % of them, one epoch (of 20) after the second milestone.
"""
EASIEST = {
    f"{name}-easiest": {**changes, "policy": {**changes["policy"], "order": "easiest"}}
    for name, changes in _ROWS.items()
    if isinstance(changes.get("policy"), dict) and changes["policy"]["name"] == "fine-pruning"
}
ROWS = {**_ROWS, **EASIEST}
QUICK_ROWS = ("regular", "fine-pruning", "strong", "strong+auto-lr", "infobatch", "random", "late", "equal-75", "stop-75")
EQUAL_TIME = tuple(row for row in ROWS if row.startswith(("equal-", "stop-")))

GOALS = {"goal": (24.46, 0.4), "hoped for": (40.0, 0.1)}
LR = {"lenet": 0.05, "vgg13": 0.05, "vgg16": 0.05, "vgg19": 0.05}


def main() -> None:
    arguments = _parse()
    if not arguments.collect:
        torch.set_num_threads(arguments.threads)
        data = smaller(load_data(arguments.data), arguments.samples)
        for network, seed, row in _jobs(arguments):
            _run(network, row, seed, data, arguments)
    runs = [labelled(read_json(path)) for path in sorted(arguments.runs.glob("*.json"))]
    runs = [run for run in runs if run["settings"] == _settings(arguments) and run["row"] in arguments.rows]
    tables = {network: table([run for run in runs if run["network"] == network]) for network in arguments.networks}
    for network, rows in tables.items():
        print_table(network, rows, arguments)
    if arguments.json:
        facts = {"machine": machine_facts(), "load": os.getloadavg(), "settings": _settings(arguments), "goals": GOALS, "source": SOURCE}
        write_json(arguments.json, {**facts, "tables": tables, "runs": runs})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Take 2,000 images, 12 epochs and one seed: under five minutes on two cores.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all figures into this JSON file.")
    parser.add_argument("--data", default="fashion-mnist", metavar="SPEC", help="The data set, as `fineprune --data` takes it.")
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["lenet", "resnet18-3stage:width=8"],
        metavar="NAME",
        help=f"Train these networks, of {', '.join(SOURCE)}; arguments follow a colon.",
    )
    parser.add_argument("--epochs", type=int, help="How many epochs a run has.")
    parser.add_argument("--samples", type=int, help="How many training images to take; validation shrinks alike, and all test images stay.")
    parser.add_argument("--seeds", nargs="+", type=int, help="Repeat every row with each of these seeds.")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        help="Make only these rows of the table (default: all of the source's order; nine of them with --quick).",
    )
    parser.add_argument("--batch-size", type=int, help="How many images one step takes.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="How many threads compute.")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/data-pruning"), metavar="FOLDER", help="Keep the finished runs in this folder."
    )
    parser.add_argument("--collect", action="store_true", help="Train nothing, and make the table of the runs that are there.")
    arguments = parser.parse_args()
    for network in arguments.networks:
        if network.partition(":")[0] not in SOURCE:
            parser.error(f"unknown network {network!r}; choose from {', '.join(SOURCE)} (with arguments: resnet18-3stage:width=8)")
    quick = arguments.quick
    arguments.epochs = arguments.epochs or (12 if quick else 20)
    arguments.samples = arguments.samples or (2000 if quick else None)
    arguments.rows = arguments.rows or list(QUICK_ROWS if quick else _ROWS)
    arguments.seeds = arguments.seeds or ([0] if quick else [0, 1, 2])
    arguments.batch_size = arguments.batch_size or (64 if quick else 128)
    return arguments


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Whether this process has `lock` to itself; the kernel frees it when the process ends, however it ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def labelled(run: dict[str, Any]) -> dict[str, Any]:
    """A recorded run; of fine-pruning without an order, its row gets the name of what it was."""
    policy = run["config"]["policy"]
    old = policy["name"] == "fine-pruning" and "order" not in policy
    return {**run, "row": f"{run['row']}-easiest"} if old else run


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
    epochs = round(epochs * changes.pop("squeezed", 1.0))
    schedule = {"schedule": "multistep", "milestones": (epochs // 2, epochs * 3 // 4)}
    if isinstance(changes.get("policy"), dict):
        shares = {name: max(1, round(epochs * value)) for name, value in changes["policy"].items() if name in ("window", "start")}
        changes["policy"] = {**changes["policy"], **shares}
    epochs = round(epochs * changes.pop("stopped", 1.0))
    if changes.get("schedule") == "auto":
        schedule = {}
    common = {"lr": LR.get(network.partition(":")[0], 0.1), "weight_decay": 5e-4, "warmup_epochs": 1.0}
    return TrainConfig(epochs=epochs, batch_size=batch_size, seed=seed, **common, **schedule, **changes)  # type: ignore[arg-type]


def _run(network: str, row: str, seed: int, data: ImageData, arguments: argparse.Namespace) -> None:
    """Train one cell of the table, unless its file is there or another process that shares the folder is at it."""
    digest = hashlib.sha256(json.dumps(_settings(arguments), sort_keys=True).encode()).hexdigest()[:8]
    order = "-worst" if f"{row}-easiest" in EASIEST else ""  # files without it are of the time before there was a choice
    name = f"{network.replace(':', '-')}_{row}{order}_{seed}_{digest}"
    done, state = arguments.runs / f"{name}.json", arguments.runs / "state" / name
    lock = arguments.runs / "state" / f"{name}.lock"
    with claimed(lock) as mine:
        if mine and not done.exists():
            _train_cell(network, row, seed, data, arguments, done, state)
        if mine:
            lock.unlink()


def _train_cell(network: str, row: str, seed: int, data: ImageData, arguments: argparse.Namespace, done: Path, state: Path) -> None:
    kind, _, given = network.partition(":")
    spec = completed(ModelSpec(name=kind, args=parse_args(given.split(",") if given else [])), data.input_shape, data)
    model = build(spec, seed=seed)
    config = config_of(network, row, seed, arguments.epochs, arguments.batch_size)
    progress = Bars()
    progress.log(f"{network}, {row}, seed {seed}")
    result = train(model, data, config, output=state, device="cpu", progress=progress)
    test = evaluate(model, data.test, device="cpu")
    history = result.history
    visits = sum(record.visits for record in history)
    cell = {
        "network": network,
        "row": row,
        "seed": seed,
        "settings": _settings(arguments),
        "config": config.to_json(),
        "model": spec.to_json(),
        "samples": {part: len(getattr(data, part)) for part in ("train", "validation", "test")},
        "machine": machine_facts(),
        "test_accuracy": test.accuracy,
        "last_validation_accuracy": history[-1].validation_accuracy,
        "epochs_run": len(history),
        "visits": visits,
        "visits_share": visits / (arguments.epochs * len(data.train)),
        "cpu_s": sum(record.cpu_seconds for record in history),
        "wall_s": result.seconds,
        "validation_s": sum(record.validation_seconds for record in history),
        "policy_s": sum(record.policy_seconds for record in history),
        "saving_of_run": result.to_json()["saving"],
        "history": result.to_json()["history"],
        "load": os.getloadavg(),
    }
    write_json(done, cell)
    shutil.rmtree(state, ignore_errors=True)


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a row: means over seeds, time saved and accuracy lost paired with the regular run of the same seed."""
    by_row = {name: {run["seed"]: run for run in runs if run["row"] == name} for name in ROWS}
    regular = by_row["regular"]
    rows = []
    for name in ROWS:
        own = [run for seed, run in sorted(by_row[name].items()) if seed in regular]
        if not own:
            continue
        saved = {kind: [100 * (1 - run[kind] / regular[run["seed"]][kind]) for run in own] for kind in ("cpu_s", "wall_s")}
        accuracies = [100 * run["test_accuracy"] for run in own]
        lost = compared(own, regular)
        planned, measured = ([saving(run, kind) for run in own] for kind in ("predicted", "measured_cpu"))
        whole = None not in measured
        rows.append(
            {
                **{"row": name, "seeds": [run["seed"] for run in own], "epochs": _mean(run["epochs_run"] for run in own)},
                **{"visits": 100 * _mean(run["visits_share"] for run in own), "cpu_s": _mean(run["cpu_s"] for run in own)},
                **{"saved": _mean(saved["cpu_s"]), "saved_wall": _mean(saved["wall_s"])},
                **{"predicted": _mean(planned), "in_run": _mean(measured) if whole else None},
                "offs": [p - m for p, m in zip(planned, measured, strict=True)] if whole else [],
                "overhead_s": statistics.median(run["policy_s"] for run in own),
                **{"accuracy": _mean(accuracies), "spread": _spread(accuracies)},
                **{"difference": _mean(lost), "difference_spread": _spread(lost), "differences": lost},
            }
        )
    return [{**row, **_verdict(row, rows, by_row)} for row in rows]


def compared(own: list[dict[str, Any]], others: dict[int, dict[str, Any]]) -> list[float]:
    """Differences of test accuracy, in points, from the runs of the same seeds."""
    return [100 * (run["test_accuracy"] - others[run["seed"]]["test_accuracy"]) for run in own if run["seed"] in others]


def saving(run: dict[str, Any], kind: str) -> float | None:
    """`predicted` or `measured_cpu`: what the run says it saved, in percent of a run of all --epochs; None where it cannot tell."""
    own = run["saving_of_run"]
    share = own[kind] if own else (0.0 if kind == "predicted" else None)
    return None if share is None else 100 * (1 - (1 - share) * run["config"]["epochs"] / run["settings"]["epochs"])


def _verdict(row: dict[str, Any], rows: list[dict[str, Any]], by_row: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Goals met, and the lead over the best equal-time run of at least as many visits: without one, the policy may claim nothing."""
    measured = row["saved"] if row["in_run"] is None else row["in_run"]
    met = [goal for goal, (saved, lost) in GOALS.items() if measured >= saved and row["difference"] >= -lost]
    none: dict[str, Any] = {"met": met, "rival": None, "over_rival": None, "over_rival_spread": None, "leads": {}}
    rivals = [other for other in rows if other["row"] in EQUAL_TIME and other["visits"] >= row["visits"] - 0.5]
    if row["row"] == "regular" or row["row"] in EQUAL_TIME or not rivals:
        return none
    fewest = min(other["visits"] for other in rivals)
    own = [by_row[row["row"]][seed] for seed in row["seeds"]]
    leads = {other["row"]: compared(own, by_row[other["row"]]) for other in rivals if other["visits"] < fewest + 0.5}
    name = min((name for name in leads if leads[name]), key=lambda name: _mean(leads[name]), default=None)
    if name is None:
        return none
    return {"met": met, "rival": name, "over_rival": _mean(leads[name]), "over_rival_spread": _spread(leads[name]), "leads": leads}


def print_table(network: str, rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """What was run, the table, and beside it the source's figures."""
    images = arguments.samples or "all"
    print(f"\n{network} on {arguments.data}: {images} training images, {arguments.epochs} epochs, batch {arguments.batch_size}")
    print(
        f"{'row':18} {'seeds':>5} {'epochs':>6} {'visits %':>8} {'CPU s':>7} {'saved %':>8} {'(wall)':>7} {'in run':>7} {'predicted':>9} "
        f"{'off':>4} {'overhead s':>10} {'accuracy %':>14} {'difference':>14}  goals, over equal time"
    )
    for row in rows:
        spread, change, lead = (
            f"± {row[key]:.2f}" if row[key] is not None else "" for key in ("spread", "difference_spread", "over_rival_spread")
        )
        rival = f"{row['over_rival']:+.2f} {lead} over {row['rival']}" if row["rival"] else ""
        in_run = "" if row["in_run"] is None else f"{row['in_run']:.2f}"
        off = f"{max(map(abs, row['offs'])):.2f}" if row["offs"] else ""
        print(
            f"{row['row']:18} {len(row['seeds']):5} {row['epochs']:6.1f} {row['visits']:8.1f} {row['cpu_s']:7.1f} {row['saved']:8.2f} "
            f"{row['saved_wall']:7.2f} {in_run:>7} {row['predicted']:9.2f} {off:>4} {row['overhead_s']:10.2f} {row['accuracy']:7.2f} "
            f"{spread:6} {row['difference']:+7.2f} {change:6}  {', '.join(filter(None, [*row['met'], rival]))}"
        )
    offs = [off for row in rows for off in row["offs"]]
    if len(offs) > 1:
        print(f"predicted less measured saving, {len(offs)} runs: {_mean(offs):+.2f} ± {_spread(offs):.2f} points")
    pruned, automatic, before, after = SOURCE[network.partition(":")[0]]
    print(f"source (CIFAR-10, full size, one run): pruned {pruned} % saved, + automatic rate {automatic} %, accuracy {before} -> {after}")


def _mean(values: Any) -> float:
    return statistics.fmean(values)


def _spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


if __name__ == "__main__":
    main()
