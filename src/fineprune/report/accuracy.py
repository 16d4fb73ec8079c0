"""Accuracy, or what stands for it, after each step, and as a network learned under its masks."""

from typing import TYPE_CHECKING, Any

from fineprune.common.figures import written

from ..manifest import STEPS, masked_meanwhile, on_grids, taught
from ..pictures import ACCENT, KEPT, bare_axes, end_at_whole
from .intervals import between, interval
from .markup import bar, curves, note, section, table, text
from .measures import Measure
from .sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy(sources: Sources) -> str:
    """A bar for each step that was measured, with its 95 % interval where it is a share of samples."""
    found, unit = sources.accuracy, sources.accuracy.get("unit")
    steps = {name: found[key] for key, name in STEPS.items() if found.get(key) is not None}
    if not steps:
        return ""
    largest = 1.0 if unit is None and max(steps.values()) <= 1 else max(map(abs, steps.values())) or 1.0
    rows = []
    for name, value in steps.items():
        ends = interval(found, value)
        kind = "other" if "dense" in name else "kept"
        rows.append([text(" ".join(name.split())), bar(abs(value) / largest, kind), text(written(value, unit)), between(ends)])
    sure = any(row[3] for row in rows)
    head = ["after", "", sources.measure, *(["95 % interval"] if sure else [])]
    shown = table(head, [row if sure else row[:3] for row in rows], kind="bars")
    return section(sources.heading, shown, note(f"{sources.measure} on {found['samples']} {found['split']} samples"), name="accuracy")


def training(sources: Sources) -> str:
    """Curves of the fine-tuning."""
    facts = sources.facts
    if not facts.get("training", {}).get("finetune"):
        return ""
    how = f"{masked_meanwhile(facts)}{taught(facts)}{on_grids(facts)}"
    caption = f"validation {sources.measure} after each epoch{how}"
    return section("Fine-tuning", curves(training_figure(facts["training"], sources.accuracy), "training", caption), name="training")


def training_figure(training: dict[str, Any], accuracy: dict[str, Any]) -> "Figure":
    """Validation accuracy, or what stands for it, by epoch, of the masked network and (where it was trained) of the dense one."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = bare_axes(4.8, 2.6)
    measure = Measure.of(accuracy)
    for key, name, colour in (("finetune", "masked", KEPT), ("dense_finetune", "dense", ACCENT)):
        history = (training.get(key) or {}).get("history", [])
        figures = [(r["epoch"], r.get("validation_figure", r.get("validation_accuracy"))) for r in history]
        points = [(epoch, measure.scale * value) for epoch, value in figures if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
            axes.set_xlim(0.5, points[-1][0] + 0.5)
    end_at_whole(axes, measure.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {measure.axis}")
    axes.legend(frameon=False)
    return figure
