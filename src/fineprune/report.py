"""A page to look at: what a compression saved, where, and what it cost. One HTML file, pictures inside."""

import html
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fineprune.common.figures import written
from fineprune.common.files import write_bytes
from fineprune.common.text import printable
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.masks import KINDS
from fineprune.compressor.masks.kind import label

from .manifest import STEPS, check_facts, final_accuracy, masked_meanwhile, measured, on_grids, read_bundle, taught, zeros_pruned
from .pictures import picture, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE, KEPT, ACCENT = "#c9d3de", "#1f5f8b", "#d1603d"

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}table{border-collapse:collapse}
td,th{padding:.25rem .9rem .25rem 0;text-align:right}
td:first-child,th:first-child{text-align:left}tr{border-bottom:1px solid #ddd}figure{margin:1rem 0}svg{max-width:100%;height:auto}
figcaption{color:#555;font-size:.9rem}"""


def write_report(
    bundle: Bundle | Path | str, path: Path | str, *, bench: dict[str, Any] | None = None, int8: dict[str, Any] | None = None
) -> None:
    """Write the page of a bundle to `path`; `bench` is a BenchmarkReport as JSON, `int8` what its int8 file cost; shown where given."""
    if not isinstance(bundle, Bundle):
        bundle = read_bundle(bundle)
    check_facts(bundle, "the bundle")
    facts = bundle.facts
    macs, accuracy = facts["macs"], facts["accuracy"]
    measure = measured(accuracy)
    name = printable(facts["model"]["name"]) if facts.get("model") else "network"
    sections = [
        f"<h1>{html.escape(name)}: {1 - macs['macs'] / max(macs['macs_dense'], 1):.1%} of the multiply-adds removed</h1>",
        _summary(facts, int8),
    ]
    if any(accuracy.get(step) is not None for step in STEPS):
        sections.append(
            _section(
                measure.capitalize() if measure.islower() else measure,
                accuracy_figure(accuracy),
                f"{measure} on {accuracy['samples']} {accuracy['split']} images",
            )
        )
    sections.append(_section("Multiply-adds by layer", macs_figure(macs["layers"]), "light: dense, dark: kept under the masks"))
    for kind in KINDS:
        masks = {name: at for name, mask in bundle.masks[kind.name].items() if (at := kind.as_block_mask(mask)) is not None}
        if masks:
            caption = "for each output position, the fraction of input channels whose block is kept (white: none, dark: all)"
            sections.append(_section(f"Where {kind.what} are kept", masks_figure(masks), caption))
    if facts.get("training", {}).get("finetune"):
        sections.append(
            _section(
                "Fine-tuning",
                training_figure(facts["training"], accuracy),
                f"validation {measure} after each epoch{masked_meanwhile(facts)}{taught(facts)}{on_grids(facts)}",
            )
        )
    if bench:
        caption = f"median and quartiles over {bench['config']['rounds']} rounds, {_machine(bench)}"
        warning = f"; {bench['warning']}" if bench.get("warning") else ""
        sections.append(_section("Latency", latency_figure(bench), caption + warning))
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}, compressed</title><style>{_STYLE}</style>'
    write_bytes(path, (page + "\n".join(sections) + "</html>\n").encode())


def accuracy_figure(accuracy: dict[str, Any]) -> "Figure":
    """Bars of the accuracy, or of what stands for it, after each step."""
    steps = [(label, accuracy[key]) for key, label in STEPS.items() if accuracy.get(key) is not None]
    figure, axes = _figure(8, 2.8)
    values, unit = [value for _, value in steps], accuracy.get("unit")
    bars = axes.bar(
        [label for label, _ in steps],
        values if unit is not None else [value * 100 for value in values],
        color=[KEPT if "dense" not in s else DENSE for s, _ in steps],
    )
    axes.bar_label(bars, [written(value, unit) for value in values] if unit is not None else None, fmt="%.2f %%")
    if unit is None and max(values) <= 1 and accuracy.get("higher_is_better", True):
        axes.set_ylim(0, 112)
    axes.set_ylabel(_axis(accuracy))
    return figure


def macs_figure(layers: Sequence[dict[str, Any]]) -> "Figure":
    """Horizontal bars: dense multiply-adds behind, kept ones in front."""
    rows = [layer for layer in layers if layer["macs_dense"]][::-1]
    figure, axes = _figure(8, 0.6 + 0.24 * len(rows))
    names = [plain(row["name"]) for row in rows]
    axes.barh(names, [row["macs_dense"] / 1e6 for row in rows], color=DENSE)
    axes.barh(names, [row["macs"] / 1e6 for row in rows], color=KEPT)
    for name, row in zip(names, rows, strict=True):
        axes.text(row["macs_dense"] / 1e6, name, f" {row['macs'] / row['macs_dense']:.0%}", va="center", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("million multiply-adds per sample")
    axes.margins(x=0.1, y=0.01)
    return figure


def masks_figure(masks: dict[str, torch.Tensor]) -> "Figure":
    """One map per layer: the kept fraction of channels at each output position."""
    from matplotlib.figure import Figure

    columns = 6
    rows = -(-len(masks) // columns)
    figure = Figure(figsize=(9, 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    image = None
    for axes, (name, mask) in zip(grid, masks.items(), strict=False):
        image = axes.imshow(mask.float().mean(0).numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        axes.set_title(f"{plain(name)}\n{mask.float().mean().item():.0%}", fontsize=7)
    if image is not None:
        figure.colorbar(image, ax=list(grid), shrink=0.6)
    return figure


def training_figure(training: dict[str, Any], accuracy: dict[str, Any]) -> "Figure":
    """Validation accuracy, or what stands for it, by epoch, of the masked network and (where it was trained) of the dense one."""
    figure, axes = _figure(8, 2.8)
    unit = accuracy.get("unit")
    scale = 100 if unit is None else 1
    for key, name, colour in (("finetune", "masked", KEPT), ("dense_finetune", "dense", ACCENT)):
        history = training.get(key, {}).get("history", [])
        figures = [(r["epoch"], r.get("validation_figure", r.get("validation_accuracy"))) for r in history]
        points = [(epoch, figure * scale) for epoch, figure in figures if figure is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {_axis(accuracy)}")
    axes.legend(frameon=False)
    return figure


_AXIS = 28
"""Letters that fit along the axis of a figure."""


def _axis(accuracy: dict[str, Any]) -> str:
    """What is measured, with its unit."""
    unit = accuracy.get("unit")
    label = plain(f"{measured(accuracy)}, %" if unit is None else f"{measured(accuracy)} {unit}".rstrip())
    return fill(label, _AXIS)


_OURS = {
    "engine dense": KEPT,
    "engine compressed": KEPT,
    "onnxruntime compressed": "#6f9fc4",
    "engine dense int8": ACCENT,
    "engine compressed int8": ACCENT,
    "onnxruntime dense int8": "#e8a98f",
    "onnxruntime compressed int8": "#e8a98f",
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
        axes.bar_label(bars, [f"{value:#.3g}" if value < 100 else f"{value:.0f}" for value in median], fontsize=8, padding=3)
        axes.set_title(f"batch {batch}, {threads} thread{'s' * (threads > 1)}", loc="left", fontsize=9)
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.1, y=0.01)
    grid[-1].set_xlabel("ms per image")
    return figure


def _figure(width: float, height: float) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _section(title: str, figure: "Figure", caption: str) -> str:
    svg = picture(figure, "svg", dpi=100, salt=title).decode()
    title, caption = (html.escape(printable(text)) for text in (title, caption))
    return f"<h2>{title}</h2><figure>{svg[svg.index('<svg') :]}<figcaption>{caption}</figcaption></figure>"


def _summary(facts: dict[str, Any], int8: dict[str, Any] | None) -> str:
    macs, ratios, accuracy = facts["macs"], facts["ratios"], facts["accuracy"]
    final = final_accuracy(accuracy)
    name, unit = html.escape(printable(measured(accuracy))), accuracy.get("unit")
    rows = [
        ("all multiply-adds, million", f"{macs['macs_dense'] / 1e6:.2f}", f"{macs['macs'] / 1e6:.2f}"),
        ("convolution multiply-adds, million", f"{macs['conv_macs_dense'] / 1e6:.2f}", f"{macs['conv_macs'] / 1e6:.2f}"),
        *((f"pruned convolution multiply-adds {what}", "", f"{share:.1%}") for what, share in zeros_pruned(facts)),
        *((f"{f'{kind.what} pruned {kind.rest}'.strip()} ({label(kind)})", "", f"{ratios['achieved'][kind.name]:.1%}") for kind in KINDS),
    ]
    if int8 and "int8" in int8["accuracy"]:
        cost = int8["accuracy"]
        rows.insert(0, (f"{html.escape(printable(measured(cost)))} in int8", "", written(cost["int8"], cost.get("unit"))))
    if accuracy.get("dense_finetuned") is not None:
        rows.insert(0, (f"{name}, dense network fine-tuned alike", written(accuracy["dense_finetuned"], unit), ""))
    if final is not None or "note" in accuracy:
        dense = "" if accuracy.get("dense") is None else written(accuracy["dense"], unit)
        rows.insert(0, (name, dense, html.escape(accuracy["note"]) if final is None else written(final, unit)))
    cells = "".join(f"<tr><td>{a}</td><td>{b}</td><td>{c}</td></tr>" for a, b, c in rows)
    return f"<table><tr><th></th><th>dense</th><th>compressed</th></tr>{cells}</table>"


def _machine(bench: dict[str, Any]) -> str:
    machine = bench["machine"]
    cores = machine["usable_cores"]
    return f"{machine['cpu']}, {cores} core{'s' * (cores > 1)}"
