"""Figures as files: the same bytes for the same figure, and a file that is whole or absent."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .common.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture(figure: "Figure", kind: Literal["svg", "png"], *, dpi: int = 130, salt: str = "fineprune") -> bytes:
    """The figure as SVG, with its text as text, or as PNG. salt: of the names within an SVG, for several of them in one page."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(stream, format=kind, dpi=dpi, metadata={"Date" if kind == "svg" else "Software": None})
    return stream.getvalue()


def write_picture(figure: "Figure", path: Path, *, dpi: int = 130) -> None:
    """Write the figure; the name ends in .svg or .png."""
    write_bytes(path, picture(figure, "svg" if path.suffix == ".svg" else "png", dpi=dpi))
