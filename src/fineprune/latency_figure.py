"""Latencies as a bar chart, in a file of its own (`fineprune bench --plot`)."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fineprune.common.figures import milliseconds, setting

from .pictures import ACCENT, DENSE, KEPT, PALER, PALER_ACCENT, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OURS = {
    "engine dense": KEPT,
    "engine compressed": KEPT,
    "onnxruntime compressed": PALER,
    "engine dense int8": ACCENT,
    "engine compressed int8": ACCENT,
    "onnxruntime dense int8": PALER_ACCENT,
    "onnxruntime compressed int8": PALER_ACCENT,
}
"""Colours of the rows that run this network's own files, float32 and int8; others are grey."""


def latency_figure(bench: dict[str, Any]) -> "Figure":
    """Bars of the median latency per image, quartiles as whiskers; a panel for each batch size and number of threads."""
    from matplotlib.figure import Figure

    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in bench["rows"]:
        groups.setdefault((row["batch_size"], row["threads"]), []).insert(0, row)
    height = sum(0.5 + 0.24 * len(rows) for rows in groups.values())
    figure = Figure(figsize=(8, 0.4 + height), layout="constrained")
    grid = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=[1 + len(rows) for rows in groups.values()])[:, 0]
    for axes, ((batch, threads), rows) in zip(grid, groups.items(), strict=True):
        low, median, high = (np.array([row[key] for row in rows]) / batch for key in ("p25_ms", "median_ms", "p75_ms"))
        colours = [_OURS.get(row["runtime"], DENSE) for row in rows]
        names = [plain(row["runtime"]) for row in rows]
        bars = axes.barh(names, median, xerr=abs(np.array([low, high]) - median), color=colours, ecolor="#555")
        axes.bar_label(bars, [milliseconds(value) for value in median], fontsize=8, padding=3)
        axes.set_title(setting(batch, threads), loc="left", fontsize=9)
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.1, y=0.01)
    grid[-1].set_xlabel("ms per image")
    return figure
