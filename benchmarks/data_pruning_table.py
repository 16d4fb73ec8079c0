"""The tables of benchmarks/data_pruning.py: what each row saved and lost against the regular run and against equal time."""

import argparse
import statistics
from typing import Any

from data_pruning_rows import EQUAL_TIME, ROWS

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
GOALS = {"goal": (24.46, 0.4), "hoped for": (40.0, 0.1)}
"""Time saved and accuracy lost at most, in percent and points."""


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
        planned = [predicted(run) for run in own]
        in_run = [share for run in own if (share := measured(run)) is not None]
        whole = len(in_run) == len(own)
        rows.append(
            {
                **{"row": name, "seeds": [run["seed"] for run in own], "epochs": _mean(run["epochs_run"] for run in own)},
                **{"visits": 100 * _mean(run["visits_share"] for run in own), "cpu_s": _mean(run["cpu_s"] for run in own)},
                **{"saved": _mean(saved["cpu_s"]), "saved_wall": _mean(saved["wall_s"])},
                **{"predicted": _mean(planned), "in_run": _mean(in_run) if whole else None},
                "offs": [p - m for p, m in zip(planned, in_run, strict=True)] if whole else [],
                "overhead_s": statistics.median(run["policy_s"] for run in own),
                "validation": 100 * _mean(run["best_validation_accuracy"] for run in own),
                **{"accuracy": _mean(accuracies), "spread": _spread(accuracies)},
                **{"difference": _mean(lost), "difference_spread": _spread(lost), "differences": lost},
                "bad_data": _found(own),
            }
        )
    return [{**row, **_verdict(row, rows, by_row)} for row in rows]


def compared(own: list[dict[str, Any]], others: dict[int, dict[str, Any]]) -> list[float]:
    """Differences of test accuracy, in points, from the runs of the same seeds."""
    return [100 * (run["test_accuracy"] - others[run["seed"]]["test_accuracy"]) for run in own if run["seed"] in others]


def predicted(run: dict[str, Any]) -> float:
    """What the run was to save, in percent of the time of one of all --epochs."""
    own = run["saving_of_run"]
    return _of_all_epochs(own["predicted"] if own else 0.0, run)


def measured(run: dict[str, Any]) -> float | None:
    """What the run measured on itself, in percent of the time of one of all --epochs; None where it cannot tell."""
    own = run["saving_of_run"]
    return None if not own or own["measured_cpu"] is None else _of_all_epochs(own["measured_cpu"], run)


def _of_all_epochs(share: float, run: dict[str, Any]) -> float:
    return 100 * (1 - (1 - share) * run["config"]["epochs"] / run["settings"]["epochs"])


def _verdict(row: dict[str, Any], rows: list[dict[str, Any]], by_row: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Goals met, and the lead over the best equal-time run of at least as many visits: without one, the policy may claim nothing."""
    time_saved = row["saved"] if row["in_run"] is None else row["in_run"]
    met = [goal for goal, (saved, lost) in GOALS.items() if time_saved >= saved and row["difference"] >= -lost]
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
    images, wrong = arguments.samples or "all", f", {arguments.noise:.0%} wrong labels" if arguments.noise else ""
    print(f"\n{network} on {arguments.data}: {images} training images{wrong}, {arguments.epochs} epochs, batch {arguments.batch_size}")
    print(
        f"{'row':24} {'seeds':>5} {'epochs':>6} {'visits %':>8} {'CPU s':>7} {'saved %':>8} {'(wall)':>7} {'in run':>7} {'predicted':>9} "
        f"{'off':>4} {'overhead s':>10} {'validation %':>12} {'accuracy %':>14} {'difference':>14}  goals, over equal time"
    )
    for row in rows:
        spread, change, lead = (
            f"± {row[key]:.2f}" if row[key] is not None else "" for key in ("spread", "difference_spread", "over_rival_spread")
        )
        rival = f"{row['over_rival']:+.2f} {lead} over {row['rival']}" if row["rival"] else ""
        in_run = "" if row["in_run"] is None else f"{row['in_run']:.2f}"
        off = f"{max(map(abs, row['offs'])):.2f}" if row["offs"] else ""
        print(
            f"{row['row']:24} {len(row['seeds']):5} {row['epochs']:6.1f} {row['visits']:8.1f} {row['cpu_s']:7.1f} {row['saved']:8.2f} "
            f"{row['saved_wall']:7.2f} {in_run:>7} {row['predicted']:9.2f} {off:>4} {row['overhead_s']:10.2f} {row['validation']:12.2f} "
            f"{row['accuracy']:7.2f} "
            f"{spread:6} {row['difference']:+7.2f} {change:6}  {', '.join(filter(None, [*row['met'], rival]))}"
        )
    offs = [off for row in rows for off in row["offs"]]
    if len(offs) > 1:
        print(f"predicted less measured saving, {len(offs)} runs: {_mean(offs):+.2f} ± {_spread(offs):.2f} points")
    for row in rows:
        for view, values in row["bad_data"].items():
            each = " ".join(f"{value:.1f}" for value in values)
            print(f"wrong labels, {row['row']:24} {view:12} precision = recall {_mean(values):5.1f} %  by seed: {each}")
    if (source := SOURCE.get(network.partition(":")[0])) is None or arguments.bundle is not None:
        return
    pruned, automatic, before, after = source
    print(f"source (CIFAR-10, full size, one run): pruned {pruned} % saved, + automatic rate {automatic} %, accuracy {before} -> {after}")


def _found(own: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Precision of each view of the losses, in percent, by seed; of the runs that have wrong labels and whose losses were kept."""
    reports = [run["bad_data"] for run in own if run.get("bad_data")]
    return {view: [100 * report[view][0] for report in reports] for view in (reports[0] if reports else ())}


def _mean(values: Any) -> float:
    return statistics.fmean(values)


def _spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
