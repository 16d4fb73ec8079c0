"""HTML in small pieces. Functions take text and give markup; what comes from files goes through `text` once."""

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.text import printable

from ..pictures import ACCENT, KEPT, PALER, PALER_ACCENT, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHADES = 16
"""In a picture of shares."""


def text(value: object) -> str:
    """As it reads, with nothing that a browser would act on."""
    return html.escape(printable(str(value)))


def section(title: str, *parts: str, name: str = "") -> str:
    """A heading and what stands below it; empty parts are left out."""
    place = f' id="{name}"' if name else ""
    return f"<section{place}><h2>{text(title)}</h2>{''.join(parts)}</section>"


def note(line: str) -> str:
    """A line in small letters."""
    return f'<p class="note">{text(line)}</p>'


def table(head: Sequence[str], rows: Iterable[Iterable[str]], *, kind: str = "") -> str:
    """head: text; rows: markup. On a narrow screen it scrolls sideways."""
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def bar(share: float, kind: str = "kept", inner: float | None = None) -> str:
    """`share` of the cell's width, from 0 to 1; inner: how much of the bar itself is dark."""
    inside = "" if inner is None else f'<i class="kept" style="{_width(inner)}"></i>'
    return f'<span class="bar"><i class="{kind}" style="{_width(share)}">{inside}</i></span>'


def _width(share: float) -> str:
    return f"width:{100 * min(max(share, 0), 1):.1f}%"


def details(title: str, *parts: str) -> str:
    """What unfolds when its title is clicked."""
    return f"<details><summary>{text(title)}</summary>{''.join(parts)}</details>"


def code(lines: str) -> str:
    """Lines for a shell or a file."""
    inside = "\n".join(text(line) for line in lines.splitlines())
    return f"<pre>{inside}</pre>"


def curves(figure: "Figure", salt: str, caption: str) -> str:
    """A drawing with its letters as text."""
    svg = picture(figure, "svg", dpi=100, salt=salt).decode()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{text(caption)}</figcaption></figure>"


def shares_png(shares: NDArray[Any]) -> str:
    """The address of a picture of shares[rows,columns] from 0 (white) to 1 (dark)."""
    from PIL import Image

    levels = np.rint(np.clip(shares, 0, 1) * (_SHADES - 1)).astype(np.uint8)
    dark = np.array([int(KEPT[at : at + 2], 16) for at in (1, 3, 5)])
    ramp = 255 + (dark - 255) * np.linspace(0, 1, _SHADES)[:, None]
    image = Image.fromarray(levels)
    image.putpalette(np.rint(ramp).astype(np.uint8).tobytes())
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def data(name: str, value: Any) -> str:
    """What the page's script reads, as JSON that no browser takes for markup."""
    return f'<script type="application/json" id="{name}">{_inert(json.dumps(value))}</script>'


def _inert(lines: str) -> str:
    return lines.replace("<", r"\u003c").replace("&", r"\u0026").replace(">", r"\u003e")


def page(title: str, parts: Iterable[str]) -> bytes:
    """The whole file. The browser is told to load nothing from anywhere, and to run no script but this page's own."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    colours = {"kept": KEPT, "paler": PALER, "accent": ACCENT, "paler-accent": PALER_ACCENT}
    style = f":root {{ {' '.join(f'--{name}: {colour};' for name, colour in colours.items())} }}\n{style}"
    allowed = base64.b64encode(sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    )
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head><body>"
    )
    body = "\n".join(part for part in parts if part)
    return f"{head}\n{body}\n<script>{script}</script></body></html>\n".encode()
