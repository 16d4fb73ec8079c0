"""How much each layer may lose: accuracy, loss or error of the network with one layer pruned, by how much of that layer is kept."""

from typing import TYPE_CHECKING, Any

from fineprune.common.figures import milliseconds

from ..pictures import bare_axes, plain
from .markup import curves, note, section, table, text
from .measures import Measure
from .sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

_MEASURES = ("accuracy", "loss", "error")
"""Keys of rows, of which the first that was measured is drawn."""
_NAMED = 8
"""The most sensitive layers have names in the figure."""


def sensitivity(sources: Sources) -> str:
    """Curves of all layers, and a table at the level where each keeps about half."""
    facts = sources.sensitivity or {"rows": []}
    layers = by_layer(facts)
    key = drawn_key([row for rows in layers.values() for row in rows])
    if key is None:
        return ""
    measure = Measure.of(facts) if key == "accuracy" else Measure(key, "", False)
    drawn = {name: points for name, rows in layers.items() if (points := _points(rows, key, measure))}
    caption = f"{measure.name} of the network while one layer alone is pruned; colours from the first layer (dark) to the last (light)"
    figure = curves(sensitivity_figure(drawn, measure), "sensitivity", caption)
    return section("Sensitivity", figure, _half(layers, key, measure), name="sensitivity")


def by_layer(found: dict[str, Any]) -> dict[str, Rows]:
    """Rows by layer, those that keep most first."""
    layers: dict[str, Rows] = {}
    for row in found["rows"]:
        if row.get("kept") is not None:
            layers.setdefault(row["layer"], []).append(row)
    return {name: sorted(rows, key=lambda row: -row["kept"]) for name, rows in layers.items()}


def drawn_key(rows: Rows) -> str | None:
    """What can be drawn of these rows."""
    return next((name for name in _MEASURES if any(row.get(name) is not None for row in rows)), None)


def _points(rows: Rows, key: str, measure: Measure) -> list[tuple[float, float]]:
    """Per cent kept, and the measure, shares in per cent; of several levels that keep alike, each is a point."""
    return [(100 * row["kept"], measure.scale * row[key]) for row in rows if row.get(key) is not None]


def sensitivity_figure(layers: dict[str, list[tuple[float, float]]], measure: Measure) -> "Figure":
    """One curve a layer; those that end worst have their names."""
    import matplotlib

    figure, axes = bare_axes(4.8, 3.4)
    colours = matplotlib.colormaps["viridis"]
    ends = {name: points[-1][1] for name, points in layers.items()}
    worst = sorted(ends, key=lambda name: ends[name], reverse=not measure.higher_is_better)[:_NAMED]
    for place, (name, points) in enumerate(layers.items()):
        label = plain(name) if name in worst else None
        axes.plot(*zip(*points, strict=True), ".-", color=colours(0.9 * place / max(len(layers) - 1, 1)), label=label, linewidth=1.2)
    axes.set_xlabel("multiply-adds of the layer kept, %")
    axes.set_ylabel(measure.axis)
    axes.invert_xaxis()
    axes.legend(frameon=False, fontsize=7, title="worst at the end", title_fontsize=7)
    return figure


def _half(layers: dict[str, Rows], key: str, measure: Measure) -> str:
    """The level of each layer that is nearest to one half."""
    near = {
        name: min(known, key=lambda row: abs(row["kept"] - 0.5))
        for name, rows in layers.items()
        if (known := [row for row in rows if row.get(key) is not None])
    }
    timed = any(row.get("milliseconds") is not None for row in near.values())
    lines = []
    for name, row in near.items():
        level = ", ".join(f"{kind.upper()} {share:.0%}" for kind, share in row["level"].items() if share)
        times = [milliseconds(row.get(time)) for time in ("milliseconds_dense", "milliseconds")]
        cells = [text(name), text(level), f"{row['kept']:.0%}", text(measure.written(row[key]))]
        lines.append(cells + (times if timed else []))
    head = ["layer", "pruned", "kept", measure.name, *(["ms dense", "ms pruned"] if timed else ())]
    return table(head, lines) + note("Of each layer the level that keeps about half; milliseconds are those of the layer.")
