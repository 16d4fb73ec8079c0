"""What else could be had of the same network: accuracy by latency, and which points no other beats."""

from fineprune.common.figures import milliseconds, size

from ..pareto.picture import front_figure
from .markup import curves, note, section, table, text
from .measures import Measure
from .sources import Sources


def front(sources: Sources) -> str:
    """The figure and its table, with the numbers that `fineprune compress --front FILE --point N` takes."""
    facts = sources.front or {"points": []}
    points, measure = facts["points"], Measure.of(facts)
    if not points:
        return ""
    rows = [
        [
            f"{point['point']}{' *' if point['front'] else ''}",
            text(point["name"]),
            _written(point.get("pruned"), "{:.1%}"),
            milliseconds(point.get("milliseconds")),
            text(measure.written(point.get("accuracy"))),
            text(measure.written(point.get("accuracy_before"))),
            _written(point.get("macs"), "{:.2f}", 1e6),
            size(point.get("bytes")),
            "int8" if point["int8"] else "float32",
        ]
        for point in points
    ]
    head = ["point", "name", "pruned", "ms", measure.name, "before fine-tuning", "million multiply-adds", "file", "in"]
    caption = f"{measure.name} by latency; numbers are those of the points"
    timed = any(point["front"] for point in points)
    figure = curves(front_figure(facts, narrow=True), "front", caption) if timed else ""
    return section(
        "Pareto front", figure, table(head, rows, kind="named"), note("* no other point is both as fast and as good"), name="front"
    )


def _written(value: float | None, form: str, unit: float = 1.0) -> str:
    return "" if value is None else form.format(value / unit)
