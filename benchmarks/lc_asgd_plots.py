"""Pictures of benchmarks/lc_asgd.py: error against virtual time, and what the predictors said beside what came; each as PNG and SVG."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, ScalarFormatter

from fineprune.common.files import read_json
from fineprune.pictures import write_picture

STYLES = {
    "sgd": ("black", "SGD, one worker"),
    "ssgd": ("tab:blue", "SSGD"),
    "asgd": ("tab:orange", "ASGD"),
    "dc-asgd": ("tab:green", "DC-ASGD"),
    "dc-asgd adaptive": ("tab:purple", "DC-ASGD, adaptive"),
    "lc-asgd": ("tab:red", "LC-ASGD"),
}
"""Colour and name of the curves that are drawn."""
_SHOWN_ARRIVALS, _SHOWN_STEPS = 160, 80


def draw(runs: Path, report: dict[str, Any], folder: Path) -> None:
    """Write the pictures that the runs allow into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [row for row in report["rows"] if row["group"] == "chosen rate"]
    _error_over_time(runs, [row for row in chosen if row["algorithm"] in STYLES], folder / "lc_asgd_error")
    traced = next((row for row in chosen if row["algorithm"] == "lc-asgd" and row["workers"] == 8), None)
    if traced is not None:
        _predictions(read_json(runs / f"{traced['names'][0]}.json"), folder / "lc_asgd_predictions")


def _error_over_time(runs: Path, rows: list[dict[str, Any]], path: Path) -> None:
    counts = sorted({row["workers"] for row in rows} - {1})
    if not counts:
        return
    figure = Figure(figsize=(4.2 * len(counts), 4.2))
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)
    for axis, workers in zip(axes[0], counts, strict=True):
        for row in rows:
            if row["workers"] in (1, workers):
                _curve(axis, [read_json(runs / f"{name}.json") for name in row["names"]], row)
        axis.set(title=f"{workers} workers", xlabel="virtual seconds", xscale="log", yscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for part in (axis.xaxis, axis.yaxis):
            part.set_major_formatter(ScalarFormatter())
            part.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_locator(FixedLocator([10, 15, 20, 25, 30, 40, 60, 80]))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("validation error, %")
    curves = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(curves.values(), curves.keys(), loc="lower center", ncols=len(curves), frameon=False, fontsize=9)
    _save(figure, path, bottom=0.07)


def _curve(axis: Axes, results: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Mean over the seeds after each epoch, with their range as error bars."""
    results = [result for result in results if "virtual_seconds" in result]
    if not results:
        return
    times = [statistics.mean(values) for values in zip(*(result["virtual_seconds"] for result in results), strict=True)]
    errors = list(zip(*([100 * (1 - a) for a in result["validation_accuracy"]] for result in results), strict=True))
    means = [statistics.mean(values) for values in errors]
    spread = [
        [mean - min(values) for mean, values in zip(means, errors, strict=True)],
        [max(values) - mean for mean, values in zip(means, errors, strict=True)],
    ]
    colour, label = STYLES[row["algorithm"]]
    axis.errorbar(times, means, yerr=spread, marker="o", markersize=3, linewidth=1.2, elinewidth=0.8, capsize=2, color=colour, label=label)


def _predictions(result: dict[str, Any], path: Path) -> None:
    arrivals = [dict(zip(("worker", "loss", "predicted_loss", "steps", "predicted_steps"), a, strict=True)) for a in result["arrivals"]]
    if not arrivals:
        return
    figure = Figure(figsize=(12, 7))
    (early, late), (steps, histogram) = figure.subplots(2, 2)
    for axis, start in ((early, 40), (late, len(arrivals) // 2)):
        part = range(start, min(start + _SHOWN_ARRIVALS, len(arrivals)))
        axis.plot(part, [arrivals[i]["loss"] for i in part], color="0.6", linewidth=1, label="loss that came")
        known = [i for i in part if arrivals[i]["predicted_loss"] is not None]
        axis.plot(known, [arrivals[i]["predicted_loss"] for i in known], color="tab:red", linewidth=1.4, label="predicted one before")
        axis.set(xlabel="arrival", ylabel="loss, nats", title=f"Loss predictor, arrivals {part.start} to {part.stop - 1}")
        axis.legend(frameon=False)
    own = [a for a in arrivals if a["worker"] == 0 and a["predicted_steps"] is not None][:_SHOWN_STEPS]
    steps.plot([a["steps"] for a in own], color="0.6", marker="o", markersize=3, linewidth=0.8, label="steps that came")
    steps.plot([a["predicted_steps"] for a in own], color="tab:red", linewidth=1.4, drawstyle="steps-mid", label="predicted")
    steps.set(xlabel="iteration of worker 0", ylabel="states of others in between", title="Step predictor")
    steps.set_ylim(0, 1.25 * max(a["steps"] for a in own))
    steps.legend(frameon=False, ncols=2, loc="upper right")
    staleness = {int(k): n for k, n in result["staleness"].items()}
    histogram.bar(list(staleness), list(staleness.values()), color="tab:blue")
    histogram.set(xlabel="updates between a pull and its gradient", ylabel="gradients", title="Staleness")
    _save(figure, path)


def _save(figure: Figure, path: Path, bottom: float = 0.0) -> None:
    figure.tight_layout(rect=(0, bottom, 1, 1))
    for suffix in (".svg", ".png"):
        write_picture(figure, path.with_suffix(suffix), dpi=110)
    print(f"wrote {path}.svg and .png")
