"""The drawings of docs/glossary.md: block, tap, quad, panel, slot and tile.

python docs/glossary/draw.py        # writes docs/glossary/*.svg
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from fineprune.pictures import write_picture

HERE = Path(__file__).parent
PLAIN, PADDING, CHOSEN, SECOND, DROPPED, LINE = "#dbe7f3", "#f4f4f4", "#f2a541", "#9cc48e", "#ffffff", "#4a5560"
Cells = Mapping[tuple[int, int], str]
NONE: Cells = {}


def grid(ax: Axes, x: float, y: float, rows: int, columns: int, *, colours: Cells = NONE, texts: Cells = NONE, colour: str = PLAIN) -> None:
    """Unit cells with the upper left corner at (x,y), which grows to the right and downwards."""
    for i in range(rows):
        for j in range(columns):
            face = colours.get((i, j), colour)
            ax.add_patch(Rectangle((x + j, y + i), 1, 1, facecolor=face, edgecolor=LINE, linewidth=0.8))
            if (i, j) in texts:
                ax.text(x + j + 0.5, y + i + 0.52, texts[i, j], ha="center", va="center", fontsize=9, color="#1d2429")


def label(ax: Axes, x: float, y: float, text: str, *, size: float = 10, align: str = "center", weight: str = "normal") -> None:
    ax.text(x, y, text, ha=align, va="center", fontsize=size, weight=weight, color="#1d2429", linespacing=1.35)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], *, bend: float = 0.0) -> None:
    style = f"arc3,rad={bend}"
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=LINE, linewidth=1.1, connectionstyle=style))


def frame(ax: Axes, x: float, y: float, rows: float, columns: float) -> None:
    ax.add_patch(Rectangle((x, y), columns, rows, fill=False, edgecolor="#b3470f", linewidth=2.2))


def block(ax: Axes) -> None:
    border = {(i, j): PADDING for i in range(8) for j in range(8) if i in (0, 7) or j in (0, 7)}
    patch = {(i, j): CHOSEN for i in (2, 3, 4) for j in (4, 5, 6)}
    grid(ax, 0, 0, 8, 8, colours=border | patch)
    frame(ax, 4, 2, 3, 3)
    label(ax, 4, -0.8, "channel c of the input (zeros around it)")
    label(ax, 4, 8.9, "a block: the 3 x 3 numbers\nunder one output position")
    off = {(0, 0), (0, 1), (1, 0), (3, 5), (4, 4), (4, 5), (5, 4), (5, 5), (5, 0), (2, 2)}
    numbers = {(i, j): "0" if (i, j) in off else "1" for i in range(6) for j in range(6)}
    grid(ax, 11.5, 1, 6, 6, colours=dict.fromkeys(off, DROPPED) | {(2, 4): CHOSEN}, texts=numbers)
    label(ax, 14.5, 0.2, "block mask M[c]")
    label(ax, 14.5, 8.4, "1: the block is used, 0: it is dropped,\nfor all filters and for every input")
    for depth in (2, 1, 0):
        grid(ax, 21 + 0.5 * depth, 1.5 - 0.5 * depth, 6, 6, colours={(2, 4): CHOSEN})
    label(ax, 24.5, -0.3, "outputs of the filters")
    label(ax, 24.5, 8.4, "the position that\nthe block contributes to")
    arrow(ax, (7.1, 3.5), (11.3, 3.5))
    arrow(ax, (17.7, 3.5), (20.8, 3.9))


def tap(ax: Axes) -> None:
    dropped = [
        {(0, 0), (0, 2), (1, 1), (2, 2)},
        {(0, 1), (2, 0)},
        {(0, 0), (0, 1), (0, 2), (1, 0), (2, 2)},
        {(1, 2), (2, 1), (2, 2), (1, 0)},
    ]
    for c, places in enumerate(dropped):
        colours = dict.fromkeys(places, DROPPED) | ({(1, 0): CHOSEN} if c == 1 else {})
        grid(ax, 5 * c, 0, 3, 3, colours=colours, texts=dict.fromkeys(places, "0"))
        label(ax, 5 * c + 1.5, -0.8, f"channel {c}")
    frame(ax, 5, 1, 1, 1)
    label(ax, -2.6, 1.5, "kernels of\none filter f")
    arrow(ax, (4.3, 4.7), (4.9, 1.6), bend=-0.15)
    label(ax, 0.2, 5.3, "a tap: one weight w[f,c,u,v],\nhere channel 1, row u = 1, column v = 0", align="left")
    label(ax, 10.2, 5.3, "white: taps that the weight mask drops (FWP);\neach filter has a weight mask of its own", align="left")


def quad(ax: Axes) -> None:
    for c in range(4):
        grid(ax, 4.5 * c, 0, 3, 3, colours={(1, 2): CHOSEN, (0, 0): SECOND})
        label(ax, 4.5 * c + 1.5, -0.8, f"channel {c}")
    label(ax, -2.6, 1.5, "kernels of\none filter f")
    grid(ax, 4.6, 5.4, 1, 4, colour=CHOSEN, texts={(0, c): f"w{c}" for c in range(4)})
    grid(ax, 13.2, 5.4, 1, 4, colour=SECOND, texts={(0, c): f"w{c}" for c in range(4)})
    for c in range(4):
        arrow(ax, (4.5 * c + 2.5, 3.1), (5.1 + c, 5.3))
    label(ax, 5.4, 7.4, "a quad: the same tap of four input channels,\nkept or dropped together")
    label(ax, 15.2, 7.4, "another quad: a different tap\nof the same four channels")


def panel(ax: Axes) -> None:
    kept = [
        (1, 1, 0, 1, 0, 0, 1, 0),
        (0, 0, 0, 0, 0, 1, 1, 1),
        (1, 0, 1, 1, 0, 0, 0, 0),
        (0, 1, 0, 0, 1, 1, 0, 1),
        (0, 0, 0, 0, 1, 0, 0, 0),
    ]
    kept = [row + more for row, more in zip(kept, [(1, 0, 1, 1), (1, 1, 1, 0), (0, 0, 0, 0), (1, 0, 0, 1), (0, 1, 1, 0)], strict=True)]
    names = ["channel 0, tap 0", "channel 0, tap 5", "channel 1, tap 2", "channel 2, tap 2", "channel 2, tap 8"]
    for row, (name, values) in enumerate(zip(names, kept, strict=True)):
        label(ax, -0.4, row + 0.5, name, align="right")
        for j, value in enumerate(values):
            x = j + 0.4 * (j // 4)
            grid(ax, x, row, 1, 1, colour=PLAIN if value else DROPPED, texts=NONE if value else {(0, 0): "0"})
    for v in range(3):
        label(ax, 2 + 4.4 * v, -0.7, f"vector {v}")
    label(ax, 6.4, -2.0, "filters, side by side in the lanes of SIMD vectors (4 drawn, 16 in the engine)")
    frame(ax, -0.1, -0.1, 5.2, 8.6)
    frame(ax, 8.7, -0.1, 5.2, 4.2)
    label(ax, 4.2, 6.3, "a panel of two vectors:\nits entries are all five rows")
    label(ax, 11.2, 6.55, "a panel of one vector:\nno filter uses the third row,\nso it has four entries")
    ax.plot([8.8, 12.8], [2.5, 2.5], color="#b3470f", linewidth=1.6)


def slot(ax: Axes) -> None:
    places = [(0, 1), (0, 2), (1, 4), (2, 1), (2, 2), (3, 4), (4, 0), (4, 5)]
    numbers = {place: str(number) for number, place in enumerate(places)}
    colours = {place: CHOSEN if number < 6 else SECOND for number, place in enumerate(places)}
    grid(ax, 0, 0, 6, 6, colours=colours, texts=numbers)
    label(ax, 3, -0.8, "output positions of a layer")
    label(ax, 3, 7.1, "chosen because their masks\nkeep about the same channels")
    arrow(ax, (6.4, 3), (9.2, 3))
    for number, (i, j) in enumerate(places):
        ax.add_patch(Rectangle((10, 0.75 * number), 2.2, 0.75, facecolor=colours[i, j], edgecolor=LINE, linewidth=0.8))
        label(ax, 11.1, 0.75 * number + 0.39, f"({i}, {j})", size=9)
        label(ax, 9.8, 0.75 * number + 0.39, str(number), size=9, align="right")
    label(ax, 11.1, -0.8, "slots of a work item")
    label(ax, 12.6, 2.25, "six slots that are\nin registers together:\none tile", align="left")
    label(ax, 12.6, 5.25, "the slots of the next tile", align="left")


def tile(ax: Axes) -> None:
    for s in range(4):
        grid(ax, 0, 1.2 * s + 3, 1, 1, colour=SECOND, texts={(0, 0): f"x{s}"})
        label(ax, -0.4, 1.2 * s + 3.5, f"slot {s}", align="right")
        for v in range(2):
            x = 4 + 5 * v
            grid(ax, x, 1.2 * s + 3, 1, 4, colour=CHOSEN)
        arrow(ax, (1.1, 1.2 * s + 3.5), (3.8, 1.2 * s + 3.5))
    for v in range(2):
        grid(ax, 4 + 5 * v, 0.2, 1, 4, colour=PLAIN)
        label(ax, 6 + 5 * v, -0.5, f"weights of vector {v}")
        arrow(ax, (6 + 5 * v, 1.3), (6 + 5 * v, 2.75))
    label(ax, 0.5, 2.2, "one number\nof x a slot", size=9)
    frame(ax, 3.8, 2.85, 4.9, 9.4)
    label(ax, 8.5, 8.7, "a tile: the sums of 4 slots x 2 vectors of filters, all in registers")
    label(ax, 8.5, 9.7, "for each entry:  sum[slot, vector] += x[slot] * weights[vector]")


DRAWINGS: dict[Callable[[Axes], None], tuple[float, float, float, float]] = {
    block: (-1, 29, -1.8, 10.2),
    tap: (-5, 20, -1.6, 6.6),
    quad: (-5, 19.5, -1.6, 8.4),
    panel: (-5.6, 15.5, -2.8, 8.0),
    slot: (-1.5, 19, -1.6, 8.2),
    tile: (-3.2, 17, -1.2, 10.5),
}
"""Each with left, right, upper and lower end of what it draws."""


def main() -> None:
    for draw, (left, right, upper, lower) in DRAWINGS.items():
        figure = Figure(figsize=((right - left) * 0.34, (lower - upper) * 0.34), facecolor="white")
        ax = figure.add_axes((0, 0, 1, 1))
        draw(ax)
        ax.set(xlim=(left, right), ylim=(lower, upper), aspect="equal")
        ax.axis("off")
        write_picture(figure, HERE / f"{draw.__name__}.svg")


if __name__ == "__main__":
    main()
