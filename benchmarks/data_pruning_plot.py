"""Picture of the tables of benchmarks/data_pruning.py: what each row saves against what it costs in accuracy.

python benchmarks/data_pruning_plot.py lenet.json resnet.json --output docs/data_pruning.svg
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fineprune.common.files import read_json
from fineprune.pictures import write_picture

FAMILIES = {
    "fine-pruning": ("o", "#d1603d"),
    "strong": ("s", "#d1603d"),
    "fine-pruning+auto-lr": ("d", "#e8a33d"),
    "strong+auto-lr": ("D", "#e8a33d"),
    "late": ("*", "#a3123a"),
    "infobatch": ("s", "#1f5f8b"),
    "infobatch+auto-lr": ("D", "#6fa8d0"),
    "auto-lr": ("D", "#7a5ea8"),
    "late-stop": ("P", "#a3123a"),
    "equal": ("v", "#444"),
    "stop": ("^", "#444"),
}
"""Row, without its order and number -> marker and colour: warm for fine-pruning, blue for infobatch, dark for equal time.

Rows of the order easiest have hollow markers, those of the order random grey ones.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, metavar="JSON", help="What `data_pruning.py --json` wrote.")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="Draw into this file (.svg or .png).")
    arguments = parser.parse_args()
    reports = [read_json(path) for path in arguments.reports]
    tables = {panel_title(network, report["settings"]): rows for report in reports for network, rows in report["tables"].items()}
    draw(arguments.output, tables, reports[0]["goals"])


def panel_title(network: str, settings: Mapping[str, Any]) -> str:
    """What tells one table from another."""
    data = str(settings["data"]).partition(":")[0].replace("imagefolder", "images of a folder")
    noise = f", {settings['noise']:.0%} wrong labels" if settings.get("noise") else ""
    return f"{'masked ' if settings.get('bundle') else ''}{network.partition(':')[0]}\n{data}{noise}"


def draw(path: Path, tables: Mapping[str, list[dict[str, Any]]], goals: Mapping[str, tuple[float, float]]) -> None:
    """One panel a table, three beside each other: mean over seeds, the standard deviation as a bar; shaded is where a goal is met."""
    shown = {title: [row for row in rows if _kind(row["row"]) in FAMILIES] for title, rows in tables.items()}
    columns = min(len(shown), 3)
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.7, 4.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    panels = list(grid.flat)[: len(shown)]
    for spare in list(grid.flat)[len(shown) :]:
        spare.remove()
    for axes, (title, rows) in zip(panels, shown.items(), strict=True):
        _panel(axes, title, rows, goals)
    for first in grid[:, 0]:
        first.set_ylabel("test accuracy against the regular run, points")
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = sorted(handles, key=lambda name: (list(FAMILIES).index(_kind(name)), name))
    labels = {"equal": "equal time, squeezed", "stop": "equal time, stopped"}
    figure.legend(
        [handles[name] for name in order], [labels.get(name, name) for name in order], loc="outside right center", frameon=False, fontsize=8
    )
    write_picture(figure, path)


def _panel(axes: Axes, title: str, rows: list[dict[str, Any]], goals: Mapping[str, tuple[float, float]]) -> None:
    axes.axhline(0, color="#bbb", linewidth=0.8, zorder=0)
    for row in rows:
        name = str(row["row"])
        marker, colour = FAMILIES[_kind(name)]
        colour = "#888" if "-random" in name else colour
        size = 11 if marker == "*" else 6
        style: dict[str, Any] = {"marker": marker, "color": colour, "markersize": size, "elinewidth": 0.8, "linestyle": "none"}
        style["fillstyle"] = "none" if "-easiest" in name else "full"
        axes.errorbar(time_saved(row), row["difference"], yerr=row["difference_spread"], label=_family(name), **style)
    low, high = axes.get_ylim()
    right = max(axes.get_xlim()[1], 50.0)
    axes.set(
        xlim=(min(0.0, axes.get_xlim()[0]), right), ylim=(low, max(high, 0.5)), title=f"{title}, {_seeds(rows)}", xlabel="time saved, %"
    )
    for name, (saved, lost) in goals.items():
        axes.fill_between([saved, right], -lost, axes.get_ylim()[1], color="#3a8f5c", alpha=0.13, linewidth=0, zorder=0)
        axes.annotate(name, (saved, axes.get_ylim()[1]), (3, -3), textcoords="offset points", va="top", fontsize=8, color="#2c6e46")
    axes.spines[["top", "right"]].set_visible(False)


def _family(name: str) -> str:
    return name.split("-")[0] if name.startswith(("equal-", "stop-")) else name


def _kind(name: str) -> str:
    """The family without the order."""
    return _family(name).replace("-easiest", "").replace("-random", "")


def _seeds(rows: list[dict[str, Any]]) -> str:
    counts = sorted({len(row["seeds"]) for row in rows})
    return f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' * (counts[0] > 1)}"


def time_saved(row: dict[str, Any]) -> float:
    """As the runs measured it on themselves, or, where they have nothing to measure it on, by their epochs."""
    return float(row["predicted"] if row["in_run"] is None else row["in_run"])


if __name__ == "__main__":
    main()
