"""What decides whether a compressed network is worth having: latency and accuracy, then multiply-adds and file size."""

from typing import Any

from fineprune.common.figures import milliseconds, setting, size, written
from fineprune.compressor.masks import in_order
from fineprune.compressor.masks.kind import label

from ..manifest import final_accuracy, measured, zeros_pruned
from .intervals import between, interval
from .latency import gain, settings
from .markup import details, note, table, text
from .sources import Sources

EXPLAINED = (
    "FFP (feature-map pruning) leaves out blocks: at an output position, for all filters at once, the patch of an input channel that the "
    "kernel would meet there. FWP (weight pruning) leaves out weights of filters, the same ones at every position."
)
"""The two kinds of masks in two sentences."""
Card = tuple[str, str, list[str]]
"""A title, and markup: one large figure, and the lines below it."""


def headline(sources: Sources) -> str:
    """The top of the page."""
    cards = (_latency(sources), _accuracy(sources), _macs(sources), _size(sources))
    inside = "".join(
        f'<div class="card"><h2>{text(title)}</h2><p class="figure">{figure}</p>{"".join(f"<p>{line}</p>" for line in lines)}</div>'
        for title, figure, lines in cards
    )
    return (
        f"<header><h1>{text(sources.name)}, compressed: {_saved(sources)}</h1>"
        f'<div class="cards">{inside}</div><p>{text(EXPLAINED)}</p>{details("All figures", _summary(sources))}</header>'
    )


def _saved(sources: Sources) -> str:
    macs = sources.facts["macs"]
    removed = f"{1 - macs['macs'] / max(macs['macs_dense'], 1):.1%} of the multiply-adds removed"
    found = gain(sources.bench)
    if found is None or not found[1]["median_ms"]:
        return removed
    dense, ours = found
    return f"{dense['median_ms'] / ours['median_ms']:.2f} times as fast, {removed}"


def _latency(sources: Sources) -> Card:
    """As `bench` measured it, or as the search for a target did."""
    search = sources.facts.get("search") or {}
    asked = [] if search.get("asked_ms") is None else [_strong(f"{milliseconds(search['asked_ms'])} ms", "asked")]
    found = gain(sources.bench)
    if sources.bench is None or found is None:
        end = (search.get("end") or {}).get("latency_ms")
        if end is not None and search.get("reference_ms"):
            return (
                "Latency",
                f"{milliseconds(end)} ms",
                [_strong(f"{milliseconds(search['reference_ms'])} ms", "dense in ONNX Runtime"), *asked],
            )
        return "Latency", "not measured", ["--bench FILE shows what fineprune bench --layers --json measured"]
    dense, ours = found
    batch, threads = ours["batch_size"], ours["threads"]
    rows = {row["runtime"]: row for row in settings(sources.bench)[batch, threads]}
    pairs = {"dense in ONNX Runtime": dense["runtime"], "in int8": "engine compressed int8", "dense in int8": "onnxruntime int8"}
    lines = [_strong(f"{milliseconds(rows[name]['median_ms'] / batch)} ms", what) for what, name in pairs.items() if name in rows]
    busy = [] if all(row.get("reliable", True) for row in found) else ["the machine was busy: measure again"]
    about = text(f"an image; {setting(batch, threads)}, {sources.bench['machine']['cpu']}")
    where = "" if ours["runtime"] == "engine compressed" else f" ({ours['runtime']})"
    return "Latency", f"{milliseconds(ours['median_ms'] / batch)} ms{text(where)}", [*lines, *asked, about, *busy]


def _strong(figure: str, what: str) -> str:
    return f"<b>{figure}</b> {what}"


def _figure(accuracy: dict[str, Any], value: float, what: str) -> str:
    """A line: how it is written, what it is of, and its interval where there is one."""
    ends = between(interval(accuracy, value))
    return _strong(text(written(value, accuracy.get("unit"))), what) + (f" <span>({ends})</span>" if ends else "")


def _accuracy(sources: Sources) -> Card:
    accuracy, final = sources.accuracy, final_accuracy(sources.accuracy)
    title = sources.heading
    if final is None:
        return title, "not measured", [text(accuracy["note"])] if "note" in accuracy else []
    ends = between(interval(accuracy, final))
    lines = [f"95 % interval <b>{ends}</b>"] if ends else []
    if accuracy.get("dense") is not None:
        lines.append(_figure(accuracy, accuracy["dense"], "dense"))
    if sources.int8 and sources.int8["accuracy"].get("int8") is not None:
        lines.append(_figure(sources.int8["accuracy"], sources.int8["accuracy"]["int8"], "in int8"))
    where = [text(f"{accuracy['samples']} {accuracy['split']} samples")] if accuracy["samples"] else []
    return title, text(written(final, accuracy.get("unit"))), [*lines, *where]


def _macs(sources: Sources) -> Card:
    macs = sources.facts["macs"]
    lines = [
        _strong(f"{macs['macs'] / 1e6:.2f}", f"of {macs['macs_dense'] / 1e6:.2f} million"),
        _strong(f"{macs['conv_macs'] / max(macs['conv_macs_dense'], 1):.1%}", "of those of convolutions"),
    ]
    return "Multiply-adds kept", f"{macs['macs'] / max(macs['macs_dense'], 1):.1%}", lines


def _size(sources: Sources) -> Card:
    """Of the exported file; without one, how many weights are left to store."""
    sizes = sources.file_bytes
    weights, kept = sources.weights
    share = f"{kept / max(weights, 1):.1%}"
    if "compressed" in sizes:
        names = {"dense": "dense", "compressed int8": "in int8"}
        lines = [_strong(size(sizes[name]), what) for name, what in names.items() if name in sizes]
        return "File size", size(sizes["compressed"]), [*lines, _strong(share, "of the weights kept"), "as ONNX files"]
    left = _strong(f"{kept:,}", f"of {weights:,}")
    return "Weights kept", share, [left, "--onnx FILE shows the size of an exported file"]


def _summary(sources: Sources) -> str:
    macs, achieved, accuracy = sources.facts["macs"], sources.facts["ratios"]["achieved"], sources.accuracy
    final, name, unit = final_accuracy(accuracy), text(sources.measure), accuracy.get("unit")
    rows = [
        ("all multiply-adds, million", f"{macs['macs_dense'] / 1e6:.2f}", f"{macs['macs'] / 1e6:.2f}"),
        ("convolution multiply-adds, million", f"{macs['conv_macs_dense'] / 1e6:.2f}", f"{macs['conv_macs'] / 1e6:.2f}"),
        *((f"pruned convolution multiply-adds {what}", "", f"{share:.1%}") for what, share in zeros_pruned(sources.facts)),
        *(
            (f"{kind.what} pruned{' of what is left' if place else ''} ({label(kind)})", "", f"{achieved[kind.name]:.1%}")
            for place, kind in enumerate(in_order(achieved))
        ),
    ]
    if sources.int8 and sources.int8["accuracy"].get("int8") is not None:
        cost = sources.int8["accuracy"]
        rows.insert(0, (f"{text(measured(cost))} in int8", "", text(written(cost["int8"], cost.get("unit")))))
    if accuracy.get("dense_finetuned") is not None:
        rows.insert(0, (f"{name}, dense network fine-tuned alike", text(written(accuracy["dense_finetuned"], unit)), ""))
    if final is not None or "note" in accuracy:
        dense = "" if accuracy.get("dense") is None else text(written(accuracy["dense"], unit))
        rows.insert(0, (name, dense, text(accuracy["note"]) if final is None else text(written(final, unit))))
    compared = (
        "The dense and the compressed network were measured on the same samples, so that their difference is known better than either."
    )
    return table(["", "dense", "compressed"], rows) + (note(compared) if final is not None and accuracy["samples"] else "")
