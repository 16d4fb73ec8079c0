"""How much each layer may lose: accuracy, loss or error of the network with one layer pruned, by how much of that layer is kept."""

from typing import TYPE_CHECKING, Any

from ..pictures import plain
from .markup import curves, note, section, table, text
from .sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

_MEASURES = ("accuracy", "loss", "error")
"""What is drawn: the first that was measured."""
_NAMED = 8
"""The most sensitive layers have names in the figure."""


def sensitivity(sources: Sources) -> str:
    """Curves of all layers, and a table at the level where each keeps about half."""
    layers = by_layer(sources.sensitivity) if sources.sensitivity else {}
    measure = measured([row for rows in layers.values() for row in rows])
    if measure is None:
        return ""
    drawn = {name: points for name, rows in layers.items() if (points := _points(rows, measure))}
    caption = f"{measure} of the network while one layer alone is pruned; colours from the first layer (dark) to the last (light)"
    return section(
        "Sensitivity", curves(sensitivity_figure(drawn, measure), "sensitivity", caption), _half(layers, measure), name="sensitivity"
    )


def by_layer(found: dict[str, Any]) -> dict[str, Rows]:
    """Rows by layer, those that keep most first."""
    layers: dict[str, Rows] = {}
    for row in found["rows"]:
        if row.get("kept") is not None:
            layers.setdefault(row["layer"], []).append(row)
    return {name: sorted(rows, key=lambda row: -row["kept"]) for name, rows in layers.items()}


def measured(rows: Rows) -> str | None:
    """What can be drawn of these rows."""
    return next((name for name in _MEASURES if any(row.get(name) is not None for row in rows)), None)


def _points(rows: Rows, measure: str) -> list[tuple[float, float]]:
    """Per cent kept, and the measure, accuracies in per cent; of several levels that keep alike, each is a point."""
    scale = 100 if measure == "accuracy" else 1
    return [(100 * row["kept"], scale * row[measure]) for row in rows if row.get(measure) is not None]


def sensitivity_figure(layers: dict[str, list[tuple[float, float]]], measure: str) -> "Figure":
    """One curve a layer; those that end worst have their names."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    colours = matplotlib.colormaps["viridis"]
    ends = {name: points[-1][1] for name, points in layers.items()}
    worst = sorted(ends, key=lambda name: ends[name], reverse=measure != "accuracy")[:_NAMED]
    for place, (name, points) in enumerate(layers.items()):
        label = plain(name) if name in worst else None
        axes.plot(*zip(*points, strict=True), ".-", color=colours(0.9 * place / max(len(layers) - 1, 1)), label=label, linewidth=1.2)
    axes.set_xlabel("multiply-adds of the layer kept, %")
    axes.set_ylabel("accuracy, %" if measure == "accuracy" else measure)
    axes.invert_xaxis()
    axes.legend(frameon=False, fontsize=7, title="falls most" if measure == "accuracy" else "rises most", title_fontsize=7)
    return figure


def _half(layers: dict[str, Rows], measure: str) -> str:
    """The level of each layer that is nearest to one half."""
    rows = []
    for name, levels in layers.items():
        row = min((level for level in levels if level.get(measure) is not None), key=lambda one: abs(one["kept"] - 0.5), default=None)
        if row is None:
            continue
        value, ours, dense = row[measure], row.get("milliseconds"), row.get("milliseconds_dense")
        level = ", ".join(f"{kind.upper()} {share:.0%}" for kind, share in row["level"].items() if share)
        rows.append(
            [
                text(name),
                text(level),
                f"{row['kept']:.0%}",
                f"{value:.2%}" if measure == "accuracy" else f"{value:.4g}",
                *("" if time is None else f"{time:#.3g}" for time in (dense, ours)),
            ]
        )
    head = ["layer", "pruned", "kept", measure, "ms dense", "ms pruned"]
    return table(head, rows) + note("Of each layer the level that keeps about half; milliseconds are those of the layer.")
