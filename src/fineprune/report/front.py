"""What else could be had of the same network: accuracy by latency, and which points no other beats."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .markup import ACCENT, KEPT, curves, note, section, table, text
from .measures import Measure
from .sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[dict[str, Any]]


def front(sources: Sources) -> str:
    """The figure and its table, with the numbers that `fineprune compress --front FILE --point N` takes."""
    facts = sources.front or {"points": []}
    points, measure = facts["points"], Measure.of(facts)
    if not points:
        return ""
    best = unbeaten(points, measure.higher_is_better)
    rows = [
        [
            f"{number(points, place)}{' *' if place in best else ''}",
            text(point["name"]),
            _written(point.get("pruned"), "{:.1%}"),
            _written(point.get("milliseconds"), "{:#.3g}"),
            text(measure.written(point.get("accuracy"))),
            text(measure.written(point.get("accuracy_before"))),
            _written(point.get("macs"), "{:.2f}", 1e6),
            _written(point.get("bytes"), "{:.3f}", 1e6),
            "int8" if point.get("int8") else "float32",
        ]
        for place, point in enumerate(points)
    ]
    head = ["point", "name", "pruned", "ms", measure.name, "before fine-tuning", "million multiply-adds", "MB", "in"]
    caption = f"{measure.name} by latency; hollow: before fine-tuning"
    figure = curves(front_figure(points, best, measure), "front", caption) if best else ""
    return section("Pareto front", figure, table(head, rows), note("* no other point is both as fast and as good"), name="front")


def number(points: Points, place: int) -> int:
    """Of the point at `place`: as the file says, or counted from 0."""
    return int(place if points[place].get("point") is None else points[place]["point"])


def unbeaten(points: Points, higher_is_better: bool = True) -> list[int]:
    """Places of the points that are on the front: none is at least as fast and as good, and better in one of both."""
    sign = -1 if higher_is_better else 1
    known = {
        place: (point["milliseconds"], sign * point["accuracy"])
        for place, point in enumerate(points)
        if None not in (point.get("milliseconds"), point.get("accuracy"))
    }
    return [place for place, mine in known.items() if not any(a <= mine[0] and b <= mine[1] and (a, b) != mine for a, b in known.values())]


def front_figure(points: Points, best: Sequence[int], measure: Measure) -> "Figure":
    """The measure by milliseconds; a line through the front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes, scale = figure.subplots(), measure.scale
    axes.spines[["top", "right"]].set_visible(False)
    for place, point in enumerate(points):
        time, after, before = (point.get(key) for key in ("milliseconds", "accuracy", "accuracy_before"))
        colour = ACCENT if point.get("int8") else KEPT
        if time is None or after is None:
            continue
        if before is not None:
            axes.plot([time, time], [scale * before, scale * after], color=colour, linewidth=0.6, alpha=0.5)
            axes.plot([time], [scale * before], "o", markerfacecolor="none", color=colour, markersize=4)
        axes.plot([time], [scale * after], "o", color=colour, markersize=5)
        axes.annotate(str(number(points, place)), (time, scale * after), xytext=(4, 3), textcoords="offset points", fontsize=7)
    line = sorted((points[k]["milliseconds"], scale * points[k]["accuracy"]) for k in best)
    axes.plot(*zip(*line, strict=True), "-", color="#888", linewidth=0.8, zorder=0)
    kinds = {bool(point.get("int8")) for point in points}
    for integers, colour, name in ((False, KEPT, "float32"), (True, ACCENT, "int8")):
        if integers in kinds and len(kinds) > 1:
            axes.plot([], [], "o", color=colour, label=name)
    if len(kinds) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("ms")
    axes.set_ylabel(measure.axis)
    return figure


def _written(value: float | None, form: str, unit: float = 1.0) -> str:
    return "" if value is None else form.format(value / unit)
