"""The picture of a front: accuracy by latency."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fineprune.common.figures import setting

from ..pictures import end_at_whole, plain
from .files import DENSE
from .points import front_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f5f8b", "#e8a33d", "#a3123a", "#3a8f5c", "#7a5ea8")
REFERENCES = dict(zip(DENSE, "sDP*", strict=True))
"""The dense network in a runtime, and its marker."""
_LINE = 0.22
"""Inches of a line of the legend."""
Style = Callable[[str], dict[str, Any]]


def series_of(point: Mapping[str, Any]) -> str:
    """What a point has in common with those on its line: the unit of weights."""
    settings = point.get("settings") or {"compress": {}}
    unit = (settings["compress"].get("fwp") or {}).get("unit")
    return f"{unit}s" if unit else "pruned"


def front_figure(
    facts: Mapping[str, Any],
    *,
    series: Callable[[Mapping[str, Any]], str] = series_of,
    style: Style | None = None,
    title: str = "",
    narrow: bool = False,
) -> "Figure":
    """Points by latency and accuracy, a line for each `series`, dashed in int8; those that no other beats have a ring.

    Strokes: before the fine-tuning. Numbers are those that `fineprune compress --point` takes. style: of a series, for plot. title: the CPU
    where none is given. narrow: for a page, with the legend below.
    """
    from matplotlib.figure import Figure

    points = [point for point in facts["points"] if point.get("milliseconds") is not None and point.get("accuracy") is not None]
    measure, unit = facts.get("measure", "accuracy"), facts.get("unit")
    scale = 100 if unit is None else 1
    figure = Figure(figsize=(4.8, 5) if narrow else (7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(series(point) for point in points if point["name"] not in REFERENCES))
    for number, name in enumerate(names):
        look = {"marker": "o", "color": COLOURS[number % len(COLOURS)]} if style is None else style(name)
        for int8 in (False, True):
            own = [p for p in points if p["name"] not in REFERENCES and series(p) == name and bool(p.get("int8")) == int8]
            _line(axes, own, f"{name}, int8" if int8 else name, scale, {**look, "linestyle": "--" if int8 else "-"})
    for point in points:
        if marker := REFERENCES.get(point["name"]):
            size = 10 if marker in "*P" else 6
            axes.plot(point["milliseconds"], scale * point["accuracy"], marker, color="#222", markersize=size, label=point["name"])
    best = [points[place] for place in front_of(points, higher_is_better=facts.get("higher_is_better", True))]
    ring: dict[str, Any] = {"fillstyle": "none", "color": "#222", "markersize": 14, "label": "nothing faster is as good"}
    if any(_before(point) is not None for point in points):
        axes.plot([], [], "_", color="#555", markersize=6, label="before fine-tuning")
    axes.plot([p["milliseconds"] for p in best], [scale * p["accuracy"] for p in best], "o", **ring)
    timed = facts.get("timed") or {"batch_sizes": [1], "threads": [1]}
    where = ", ".join(map(setting, timed["batch_sizes"], timed["threads"]))  # one of each
    split = facts.get("split") or "test"
    axes.set(xlabel=f"latency, ms ({where})", ylabel=plain(f"{split} {measure}, {'%' if unit is None else unit}".rstrip(", ")))
    axes.set_title(plain(title or (facts.get("machine") or {}).get("cpu") or ""), fontsize=10)
    axes.grid(color="#ddd", linewidth=0.6)
    end_at_whole(axes, unit)
    if not narrow:
        figure.set_figheight(max(4.6, _LINE * len(axes.get_legend_handles_labels()[1])))
    placed: dict[str, Any] = {"loc": "outside lower center", "ncols": 2} if narrow else {"loc": "outside right upper"}
    figure.legend(**placed, frameon=False, fontsize=8, labelspacing=0.8)
    return figure


def _line(axes: Any, points: list[Mapping[str, Any]], label: str, scale: int, look: Mapping[str, Any]) -> None:
    """Points of one series, after and before their fine-tuning, with their numbers."""
    line = sorted((point["milliseconds"], scale * point["accuracy"]) for point in points)
    if not line:
        return
    hollow = {"markerfacecolor": "white"} if look["linestyle"] == "--" else {}
    axes.plot(*zip(*line, strict=True), label=plain(label), linewidth=1, markersize=5, **look, **hollow)
    for point in points:
        place = point["milliseconds"], scale * point["accuracy"]
        if (before := _before(point)) is not None:
            axes.plot([place[0]] * 2, [scale * before, place[1]], color=look["color"], linewidth=0.6, alpha=0.5)
            axes.plot(place[0], scale * before, "_", color=look["color"], markersize=6)
        if (number := point.get("point")) is not None:
            axes.annotate(str(number), place, xytext=(7, 6), textcoords="offset points", fontsize=7, color="#555")


def _before(point: Mapping[str, Any]) -> float | None:
    """What it was before the fine-tuning, where that changed it."""
    before: float | None = point.get("accuracy_before")
    return None if before == point["accuracy"] else before
