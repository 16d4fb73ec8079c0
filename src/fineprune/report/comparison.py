"""Bundles side by side: what each gained and what it cost, and what each keeps of every layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune.common.errors import UsageError
from fineprune.common.figures import milliseconds, size
from fineprune.common.files import write_bytes
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.masks import KINDS

from ..manifest import final_accuracy
from ..pictures import KEPT, PALER, bare_axes, end_at_whole, plain
from .headline import EXPLAINED
from .intervals import between, interval
from .latency import gain
from .markup import bar, curves, note, page, section, table, text
from .measures import Measure
from .sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Given = Bundle | Path | str
Row = dict[str, Any]


def compare(bundles: Sequence[Given], *, bench: Sequence[Mapping[str, Any] | Path | str] = ()) -> list[Row]:
    """A row of plain values for each bundle; what is not known is None.

    bench: what `fineprune bench --json` printed of each bundle, or files of it, in the order of the bundles. UsageError where there are not
    as many, or fewer than two bundles.
    """
    return [row(sources, place) for place, sources in enumerate(_gathered(bundles, bench))]


def write_comparison(bundles: Sequence[Given], path: Path | str, *, bench: Sequence[Mapping[str, Any] | Path | str] = ()) -> None:
    """The same as one HTML page at `path`, with a figure and a table of layers."""
    gathered = _gathered(bundles, bench)
    rows = [row(sources, place) for place, sources in enumerate(gathered)]
    parts = (
        f"<header><h1>{len(rows)} bundles side by side</h1><p>{text(EXPLAINED)}</p></header>",
        section("Figures", table(["", *names(rows)], [map(text, line) for line in figures(rows)], kind="facts"), note(about(rows))),
        _figure(rows),
        _layers(rows, gathered),
    )
    write_bytes(path, page("bundles side by side", parts))


def _gathered(bundles: Sequence[Given], bench: Sequence[Mapping[str, Any] | Path | str]) -> list[Sources]:
    if len(bundles) < 2:
        raise UsageError(f"bundles are compared from two on, got {len(bundles)}; `fineprune report` shows one")
    if bench and len(bench) != len(bundles):
        raise UsageError(f"there are {len(bundles)} bundles and {len(bench)} files of latencies; give one for each, in the same order")
    if not bench:
        return [Sources.gathered(bundle) for bundle in bundles]
    return [Sources.gathered(bundle, bench=times) for bundle, times in zip(bundles, bench, strict=True)]


def row(sources: Sources, place: int) -> Row:
    """Of one bundle, the `place`-th from 0."""
    facts, accuracy = sources.facts, sources.accuracy
    final, times = final_accuracy(accuracy), gain(sources.bench)
    weights, kept = sources.weights
    dense_ms, ms = (None, None) if times is None else (one["median_ms"] / one["batch_size"] for one in times)
    return {
        "bundle": str(sources.bundle.folder or f"bundle {place + 1}"),
        "network": sources.name,
        "measure": sources.measure,
        "unit": accuracy.get("unit"),
        "measured_on": [(facts.get("data") or {}).get("spec"), accuracy["split"], accuracy["samples"]],
        "accuracy": final,
        "interval": None if final is None else interval(accuracy, final),
        "accuracy_dense": accuracy.get("dense"),
        "macs": facts["macs"]["macs"],
        "macs_dense": facts["macs"]["macs_dense"],
        "pruned": {kind.name: facts["ratios"]["achieved"][kind.name] for kind in KINDS},
        "weights": weights,
        "weights_kept": kept,
        "milliseconds": ms,
        "milliseconds_dense": dense_ms,
        "file_bytes": sources.file_bytes.get("compressed"),
    }


def names(rows: Sequence[Row]) -> list[str]:
    """Of the bundles: of their folders, with the path where they are called alike."""
    last = [Path(one["bundle"]).name for one in rows]
    return last if len(set(last)) == len(last) else [one["bundle"] for one in rows]


def figures(rows: Sequence[Row]) -> list[list[str]]:
    """As text: a line a figure, first its name, then that of each bundle; figures that no bundle has are left out."""
    named = [_figures(one) for one in rows]
    every = dict.fromkeys(name for one in named for name in one)  # measures of several tasks differ
    lines = [[name, *(one.get(name, "") for one in named)] for name in every]
    return [line for line in lines if any(line[1:])]


def _figures(one: Row) -> dict[str, str]:
    measure = Measure.of(one)
    return {
        "network": one["network"],
        "ms an image": milliseconds(one["milliseconds"]),
        "ms an image, dense": milliseconds(one["milliseconds_dense"]),
        measure.name: measure.written(one["accuracy"]),
        "95 % interval": between(one["interval"]),
        f"{measure.name}, dense": measure.written(one["accuracy_dense"]),
        "multiply-adds, million": f"{one['macs'] / 1e6:.2f}",
        "multiply-adds kept": f"{one['macs'] / max(one['macs_dense'], 1):.1%}",
        **{f"{kind.what} pruned": f"{one['pruned'][kind.name]:.1%}" for kind in KINDS},
        "weights kept": f"{one['weights_kept'] / max(one['weights'], 1):.1%}",
        "ONNX file": size(one["file_bytes"]),
    }


def about(rows: Sequence[Row]) -> str:
    """What the accuracies are, or that they cannot be compared."""
    if all(one["accuracy"] is None for one in rows):
        return "No accuracy was measured."
    kinds = {(one["measure"], *map(str, one["measured_on"])) for one in rows}
    if len(kinds) > 1:
        named = "; ".join(f"{one['bundle']}: {_measured(one)}" for one in rows)
        return f"The accuracies are not of the same samples, so that they say little side by side: {named}."
    latency = "" if rows[0]["milliseconds"] is None else "; compressed in the engine, dense in ONNX Runtime"
    return f"{_measured(rows[0])}{latency}"


def _measured(one: Row) -> str:
    data, split, samples = one["measured_on"]
    return f"{one['measure']} on {samples} {split} samples{f' of {data}' if data else ''}"


def _figure(rows: Sequence[Row]) -> str:
    """Accuracy by latency, or by multiply-adds where not all latencies are known; empty where bundles have no measure in common."""
    if any(one["accuracy"] is None for one in rows) or len({Measure.of(one) for one in rows}) > 1:
        return ""
    timed = all(one["milliseconds"] is not None for one in rows)
    caption = f"{rows[0]['measure']} by {'latency' if timed else 'multiply-adds'}; whiskers: 95 % intervals where they are known"
    return section("At a glance", curves(comparison_figure(rows, timed), "comparison", caption))


def comparison_figure(rows: Sequence[Row], timed: bool) -> "Figure":
    """A point a bundle, with its place in the table."""
    figure, axes = bare_axes(4.8, 3)
    measure = Measure.of(rows[0])
    scale = measure.scale
    for one, name in zip(rows, names(rows), strict=True):
        x = one["milliseconds"] if timed else one["macs"] / 1e6
        y = scale * one["accuracy"]
        ends = [abs(scale * end - y) for end in one["interval"]] if one["interval"] else None
        axes.errorbar([x], [y], yerr=None if ends is None else [[ends[0]], [ends[1]]], fmt="o", color=KEPT, ecolor=PALER)
        axes.annotate(plain(name), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.2, y=0.15)
    end_at_whole(axes, measure.unit)
    axes.set_xlabel("ms an image" if timed else "million multiply-adds")
    axes.set_ylabel(measure.axis)
    return figure


def _layers(rows: Sequence[Row], gathered: Sequence[Sources]) -> str:
    """What each bundle keeps of the multiply-adds of each layer."""
    found: list[dict[str, float]] = [
        {layer["name"]: layer["macs"] / layer["macs_dense"] for layer in sources.facts["macs"]["layers"] if layer["macs_dense"]}
        for sources in gathered
    ]
    every = dict.fromkeys(name for layers in found for name in layers)
    lines = [[text(name), *(_kept(layers.get(name)) for layers in found)] for name in every]
    shares = table(["layer", *names(rows)], lines, kind="shares")
    return section("Layers", shares, note("Kept of each layer's multiply-adds; empty: the network has no such layer."))


def _kept(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}{bar(share)}"
