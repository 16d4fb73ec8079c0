"""Figures: their colours, and files of them: the same bytes for the same figure, and a file that is whole or absent."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fineprune.common.errors import UsageError
from fineprune.common.files import check_writable, write_bytes
from fineprune.common.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".png", ".svg")
_WHOLE = 100.9
"""Where an axis in per cent ends: a mark at 100 is seen whole, and there is no tick at 101."""

DENSE, KEPT, PALER, ACCENT, PALER_ACCENT = "#c9d3de", "#1f5f8b", "#8fb3cf", "#d1603d", "#e8a98f"
"""Of the dense network; of the compressed one in the engine and (paler) in ONNX Runtime; of int8 or what else stands beside it, alike."""


def bare_axes(width: float, height: float) -> tuple["Figure", "Axes"]:
    """A figure of so many inches, with axes that have no frame above and to the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def end_at_whole(axes: "Axes", unit: str | None) -> None:
    """End an axis near 100 where values are written in per cent (no unit) and none is larger."""
    low, high = axes.get_ylim()
    if unit is None and axes.dataLim.y1 <= 100:
        axes.set_ylim(low, min(high, _WHOLE))


def picture(figure: "Figure", kind: Literal["svg", "png"], *, dpi: int = 130, salt: str = "fineprune") -> bytes:
    """The figure as SVG, with its text as text, or as PNG. salt: of the names within an SVG, for several of them in one page."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in a script that the font lacks
        figure.savefig(stream, format=kind, dpi=dpi, metadata={"Date" if kind == "svg" else "Software": None})
    return stream.getvalue()


def plain(name: str) -> str:
    """A name from a file as text of a figure, where a pair of $ would be taken for a formula."""
    return printable(name).replace("$", r"\$")


def check_picture(path: Path) -> None:
    """UsageError where --plot names no kind of file that is written, RunError where it cannot be written: before work that takes long."""
    if path.suffix not in KINDS:
        raise UsageError(f"--plot writes {' or '.join(KINDS)}, got {path}")
    check_writable(path)


def write_picture(figure: "Figure", path: Path, *, dpi: int = 130) -> None:
    """Write the figure; the name ends in .svg or .png."""
    write_bytes(path, picture(figure, "svg" if path.suffix == ".svg" else "png", dpi=dpi))
