"""What a training leaves to look at: the automatic learning rate's curves, and the samples that look wrong, with pictures."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fineprune.common.files import write_bytes
from fineprune.common.inputs import one
from fineprune.common.text import printable
from fineprune.models.data import ImageData
from fineprune.models.training.auto_lr import AutoRateConfig, replay
from fineprune.models.training.results import EpochRecord
from fineprune.models.training.sampling.config import PolicyConfig
from fineprune.models.training.sampling.loss_log import VIEWS, SampleFacts

from .pictures import ACCENT, KEPT, PALER, plain, write_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 12


def write_auto_rate(path: Path, history: Sequence[EpochRecord], config: AutoRateConfig, lr: float) -> None:
    """The figure as a PNG. config: as the run resolved it (`for_epochs`)."""
    write_picture(auto_rate_figure(history, config, lr), path, dpi=110)


def auto_rate_figure(history: Sequence[EpochRecord], config: AutoRateConfig, lr: float) -> "Figure":
    """Loss, std_i, std_2i and their difference over the epochs; a line where the rule dropped the rate, a band of +-h."""
    from matplotlib.figure import Figure

    parts = max(len(record.part_losses) for record in history)
    whole = [(record.epoch, () if record.rate_loss is None else (record.rate_loss,)) for record in history]
    followed = [(record.epoch, record.part_losses) for record in history] if parts else whole
    epochs = [epoch - (len(own) - part) / max(parts, 1) for epoch, own in followed for part in range(1, len(own) + 1)]
    losses = [loss for _, own in followed for loss in own]
    points = replay(losses, config, lr)
    nan = math.nan
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(epochs, losses, "o-" if config.parts == 1 else "-", color=KEPT, markersize=3)
    above.set_ylabel(f"{config.split} loss")
    for values, label, colour in (
        ([p.std_i for p in points], f"std of the last {config.interval}", KEPT),
        ([p.std_2i for p in points], f"std of the last {2 * (config.interval or 0)}", PALER),
        ([p.diff for p in points], "difference", ACCENT),
    ):
        below.plot(epochs, [nan if v is None else v for v in values], ".-", color=colour, label=label, markersize=4)
    limits = [p.threshold for p in points]
    lower = [-h for h in limits] if config.rule == "default" else [min(0.0, *(p.diff or 0.0 for p in points))] * len(points)
    below.fill_between(epochs, lower, limits, color=ACCENT, alpha=0.15, step="mid", linewidth=0, label="rule fires here")
    drops = 0
    for epoch, point in zip(epochs, points, strict=True):
        if point.fired:
            drops += 1
            last = config.max_drops is not None and drops > config.max_drops
            for axes in (above, below):
                axes.axvline(epoch, color="#555", linestyle=":" if last else "--", linewidth=1)
            text = "nothing left to try" if last else f"lr × {config.factor:g}"
            above.annotate(text, (epoch, 1), xycoords=("data", "axes fraction"), ha="right", va="top", rotation=90, fontsize=8)
            if last:  # an epoch that has begun goes on to its end, and the rule fires at each of its losses
                break
    below.set_yscale("symlog", linthresh=2 * config.threshold)  # the first differences are far larger than h
    below.set_xlabel("epoch")
    below.xaxis.get_major_locator().set_params(integer=True)
    below.legend(frameon=False, fontsize=8)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_suspects(folder: Path, losses: Tensor, data: ImageData, number: int, policy: PolicyConfig) -> list[Path]:
    """suspects.csv and a contact sheet for each view, of `number` training samples each; the files that were written.

    losses: [epochs, N], NaN where a sample was not visited; policy: by which they were chosen. Without pruning there is no view of what
    was pruned.
    """
    facts = SampleFacts.of(losses)
    views = [view for view in VIEWS if view == "high-loss" or len(facts.pruned.unique()) > 1]
    chosen = {view: facts.order(view)[:number] for view in views}
    table = folder / "suspects.csv"
    write_bytes(table, suspects_csv(chosen, facts, losses, data).encode())
    written = [table]
    for view, indices in chosen.items():
        written.append(folder / f"suspects-{view}.png")
        write_picture(contact_sheet(indices, facts, losses, data, _title(view, policy)), written[-1], dpi=110)
    return written


def _title(view: str, policy: PolicyConfig) -> str:
    if view == "high-loss":
        return "the highest mean loss: wrong labels, if there are any, are here"
    if policy.name == "fine-pruning" and policy.order == "worst":
        return "left out most often, for losses above the mean: wrong labels are frequent here"
    blind = "random" in (policy.name, policy.order)
    return "left out most often: " + ("by chance" if blind else "the easiest samples, rarely wrong")


def suspects_csv(chosen: dict[str, Tensor], facts: SampleFacts, losses: Tensor, data: ImageData) -> str:
    """One row a sample and view; the loss of an epoch that left it out is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    curve = [f"loss_{epoch}" for epoch in range(1, len(losses) + 1)]
    writer.writerow(["view", "rank", "index", "label", "class", "mean_loss", "high_share", "pruned_epochs", "visits", *curve])
    labels = data.train.labels
    for view, indices in chosen.items():
        for rank, index in enumerate(indices.tolist(), start=1):
            label = int(labels[index])
            figures = [
                f"{facts.mean_loss[index]:.4f}",
                f"{facts.high_share[index]:.3f}",
                int(facts.pruned[index]),
                int(facts.visits[index]),
            ]
            values = ["" if math.isnan(v) else f"{v:.4f}" for v in losses[:, index].tolist()]
            writer.writerow([view, rank, index, label, printable(data.classes[label]), *figures, *values])
    return stream.getvalue()


def contact_sheet(indices: Tensor, facts: SampleFacts, losses: Tensor, data: ImageData, title: str) -> "Figure":
    """Each sample's picture over its loss by epoch, with its index, its class as labelled, its mean loss and how often it was left out."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(indices))
    rows = -(-len(indices) // columns)
    figure = Figure(figsize=(1.15 * columns + 0.4, 1.95 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{title} (curve: loss by epoch, one scale; gap: left out)", fontsize=10)
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    for axes in grid.flatten():
        axes.set_axis_off()
    pictures = _pictures(indices, data).numpy()
    highest = float(np.quantile(losses[:, indices].nan_to_num(0), 0.99)) or 1.0  # one spike must not flatten every curve: it is cut off
    epochs = range(1, len(losses) + 1)
    for place, index in enumerate(indices.tolist()):
        row, column = divmod(place, columns)
        picture, curve = grid[2 * row, column], grid[2 * row + 1, column]
        image = pictures[place]
        picture.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        name = plain(data.classes[int(data.train.labels[index])])
        picture.set_title(f"{index}: {name}\n{facts.mean_loss[index]:.2f}, out {int(facts.pruned[index])}×", fontsize=6, pad=2)
        curve.plot(epochs, losses[:, index].tolist(), ".-", color=ACCENT, linewidth=0.8, markersize=2)
        curve.set_ylim(-0.05 * highest, 1.05 * highest)
        curve.set_xlim(0, len(losses) + 1)
        curve.axhline(0, color="#bbb", linewidth=0.5)
    return figure


def _pictures(indices: Tensor, data: ImageData) -> Tensor:
    """[n,H,W,C] in [0,1], in the order of `indices`, without augmentation."""
    batches = list(data.train.batches(256, indices=indices))
    scale, shift = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.std, data.mean))
    pictures = torch.cat([one(batch.images) for batch in batches]) * scale + shift
    return pictures.permute(0, 2, 3, 1).clamp(0, 1)
