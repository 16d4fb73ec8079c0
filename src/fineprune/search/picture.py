"""The picture of what layers cost: a field for each layer and level, and beside it how long the layers take."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fineprune.compressor.search.levels import Level

from ..pictures import DENSE, KEPT, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN = 30
"""Layers up to which figures stand in the fields."""
_LEAST = 1e-7


def sensitivity_figure(facts: Mapping[str, Any]) -> "Figure":
    """Of what `sensitivity` gives: errors by colour (logarithmic), in each field the points that the layer loses there by itself."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows = facts["rows"]
    names = list(dict.fromkeys(row["layer"] for row in rows))
    levels = sorted({Level(**row["level"]) for row in rows})
    errors = np.full((len(names), len(levels)), np.nan)
    for row in rows:
        errors[names.index(row["layer"]), levels.index(Level(**row["level"]))] = max(row["error"], _LEAST)
    timed = any(row.get("milliseconds") is not None for row in rows)
    figure = Figure(figsize=(4 + 0.62 * len(levels) + 2.6 * timed, 1.4 + 0.24 * len(names)), layout="constrained")
    grid = figure.subplots(1, 1 + timed, squeeze=False, width_ratios=[len(levels), 4][: 1 + timed])[0]
    axes = grid[0]
    least = float(np.nanmin(errors))
    image = axes.imshow(errors, aspect="auto", cmap="YlOrRd", norm=LogNorm(least, max(float(np.nanmax(errors)), 2 * least)))
    axes.set_xticks(range(len(levels)), [str(level).replace("weights ", "").replace(", ", "\n") for level in levels], fontsize=8)
    axes.set_yticks(range(len(names)), [plain(name) for name in names], fontsize=8)
    axes.set_xlabel("pruned of the layer's weights")
    if len(names) <= _WRITTEN:
        _written(axes, facts, names, levels, errors)
    figure.colorbar(image, ax=axes, label="error of the network's outputs", shrink=0.8)
    if timed:
        _times(grid[1], rows, names)
    return figure


def _written(axes: Any, facts: Mapping[str, Any], names: list[str], levels: list[Level], errors: Any) -> None:
    """The loss of each layer at each level; where nothing is known of the dense network's figure, nothing."""
    dense = facts.get("dense")
    if dense is None:
        return
    axes.set_title(
        plain(f"points of {facts['measure']} lost" if facts["unit"] is None else f"{facts['measure']} lost"), fontsize=9, loc="left"
    )
    scale = (100 if facts["unit"] is None else 1) * (1 if facts["higher_is_better"] else -1)
    dark = np.sqrt(np.nanmin(errors) * np.nanmax(errors)) * 10
    for row in facts["rows"]:
        place = names.index(row["layer"]), levels.index(Level(**row["level"]))
        lost = (dense - row["accuracy"]) * scale
        colour = "white" if errors[place] > dark else "#333"
        axes.text(place[1], place[0], f"{lost:.1f}" if abs(lost) >= 0.05 else "0", ha="center", va="center", fontsize=7, color=colour)


def _times(axes: Any, rows: list[Any], names: list[str]) -> None:
    """Milliseconds of the dense layers, and at the fastest level."""
    dense, fastest = dict[str, float](), dict[str, float]()
    for row in rows:
        if row.get("milliseconds") is not None and row.get("milliseconds_dense") is not None:
            dense[row["layer"]] = row["milliseconds_dense"]
            fastest[row["layer"]] = min(row["milliseconds"], fastest.get(row["layer"], np.inf))
    places = range(len(names))
    axes.barh(places, [dense.get(name, 0.0) for name in names], color=DENSE, label="dense")
    axes.barh(places, [fastest.get(name, 0.0) for name in names], color=KEPT, label="fastest level")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlabel("ms in the engine")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.02, 1.0))
