"""Pictures of benchmarks/lc_asgd.py: error against virtual time, and what the predictors said beside what came."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from fineprune.common.files import read_json

COLOURS = {"sgd": "black", "ssgd": "tab:blue", "asgd": "tab:orange", "dc-asgd": "tab:green", "lc-asgd": "tab:red"}
_SHOWN_ARRIVALS = 160


def draw(runs: Path, report: dict[str, Any], folder: Path) -> None:
    """Write the pictures that the runs allow into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [row for row in report["rows"] if row["group"] == "chosen rate"]
    _error_over_time(runs, chosen, folder / "error_over_time.png")
    traced = next((row for row in chosen if row["algorithm"] == "lc-asgd" and row["workers"] == 8), None)
    if traced is not None:
        _predictions(read_json(runs / f"{traced['names'][0]}.json"), folder / "predictions.png")


def _error_over_time(runs: Path, rows: list[dict[str, Any]], path: Path) -> None:
    counts = sorted({row["workers"] for row in rows} - {1})
    if not counts:
        return
    figure, axes = plt.subplots(1, len(counts), figsize=(4.6 * len(counts), 3.8), sharey=True, squeeze=False)
    for axis, workers in zip(axes[0], counts, strict=True):
        for row in rows:
            if row["workers"] in (1, workers):
                _curve(axis, [read_json(runs / f"{name}.json") for name in row["names"]], row)
        axis.set(title=f"{workers} workers", xlabel="virtual seconds", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("validation error, %")
    _save(figure, path)


def _curve(axis: Axes, results: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Mean over the seeds, with their range as error bars."""
    results = [result for result in results if "virtual_seconds" in result]
    if not results:
        return
    times = [statistics.mean(values) for values in zip(*(result["virtual_seconds"] for result in results), strict=True)]
    errors = list(zip(*([100 * (1 - a) for a in result["validation_accuracy"]] for result in results), strict=True))
    means = [statistics.mean(values) for values in errors]
    spread = [
        [mean - min(values) for mean, values in zip(means, errors, strict=True)],
        [max(v) - m for m, v in zip(means, errors, strict=True)],
    ]
    label = f"{row['algorithm']}, lr {row['lr']:g}, n={len(results)}"
    axis.errorbar(times, means, yerr=spread, marker="o", markersize=3, capsize=2, color=COLOURS[row["algorithm"]], label=label)


def _predictions(result: dict[str, Any], path: Path) -> None:
    arrivals = [dict(zip(("worker", "loss", "predicted_loss", "steps", "predicted_steps"), a, strict=True)) for a in result["arrivals"]]
    if not arrivals:
        return
    figure, ((early, late), (steps, histogram)) = plt.subplots(2, 2, figsize=(12, 7))
    middle = len(arrivals) // 2
    for axis, start in ((early, 40), (late, middle)):
        part = range(start, min(start + _SHOWN_ARRIVALS, len(arrivals)))
        axis.plot(part, [arrivals[i]["loss"] for i in part], color="0.5", linewidth=1, label="loss that came")
        known = [i for i in part if arrivals[i]["predicted_loss"] is not None]
        axis.plot(known, [arrivals[i]["predicted_loss"] for i in known], color="tab:red", linewidth=1.4, label="predicted one before")
        axis.set(xlabel="arrival", ylabel="loss, nats", title=f"arrivals {part.start} to {part.stop - 1}")
        axis.legend()
    own = [a for a in arrivals if a["worker"] == 0 and a["predicted_steps"] is not None][:80]
    steps.step(range(len(own)), [a["steps"] for a in own], color="0.5", where="mid", label="steps that came")
    steps.step(range(len(own)), [a["predicted_steps"] for a in own], color="tab:red", where="mid", label="predicted")
    steps.set(xlabel="iteration of worker 0", ylabel="states of others in between")
    steps.legend()
    staleness = {int(k): n for k, n in result["staleness"].items()}
    histogram.bar(list(staleness), list(staleness.values()), color="tab:blue")
    histogram.set(xlabel="staleness, updates", ylabel="gradients")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path}")
