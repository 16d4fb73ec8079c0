"""Which kernel runs each convolution, and in which layout each tensor is made: a minimum cut.

    minimise  sum_layers cost(layer, layout of its output)  +  sum_tensors (cost of each conversion that some reader needs)

A layer in layout NHWC stands on the source's side of the cut (cut.py), one in NCHW on the sink's. A tensor that is NHWC while some
reader needs NCHW pays once, however many do, and the same the other way round.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from fineprune.ops.simd import LANES

from ..ir import costs
from ..ir.costs import Counts
from ..ir.dtypes import FLOAT32, SLOT, DType
from ..ir.network import LAYOUTS, NCHW, NHWC, Box, Candidate, Layer
from .cut import NEVER, SINK, SOURCE, Cut

_FAR = 5
"""Times the fastest candidate: what takes longer is not worth telling."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What runs a layer, in which layout its output is, in which it needs each input (None: as it is), why, and the seconds that it is
    expected to take (None: nobody asked)."""

    layout: str
    needs: tuple[str | None, ...]
    kernel: str = ""
    reason: str = ""
    seconds: float | None = None


def choose(
    layers: Sequence[Layer], boxes: Mapping[str, Box], candidates: Sequence[Sequence[Candidate]], dtypes: Mapping[str, DType] | None = None
) -> list[Choice]:
    """A choice for each layer; candidates[k]: of layer k, empty where there is no choice. Tensors from outside come in any layout.

    dtypes: of tensors; those that are not named are float32.
    """
    types = dtypes or {}
    best = [{layout: _cheapest(found, layout) for layout in LAYOUTS} for found in candidates]
    options = [
        {layout: _choice(layer, layout, best[k][layout]) for layout in _possible(layer, candidates[k])} for k, layer in enumerate(layers)
    ]
    cut = Cut()
    producers = {layer.output: k for k, layer in enumerate(layers)}
    for k, layer in enumerate(layers):
        for layout, (start, end) in ((NHWC, (k, SINK)), (NCHW, (SOURCE, k))):
            found = best[k][layout]
            seconds = found.seconds if found else layer.seconds(boxes[layer.output], layout)
            cut.edge(start, end, round(seconds * 1e12) if layout in options[k] else NEVER)
    readers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for k, layer in enumerate(layers):
        for position, name in enumerate(layer.inputs):
            readers[name].append((k, position))
    for name, uses in readers.items():
        if name in producers:
            cost = round(conversion_cost(boxes[name], types.get(name, FLOAT32)) * 1e12)
            for layout in LAYOUTS:
                needing = {k for k, position in uses if layout in options[k] and options[k][layout].needs[position] == layout}
                cut.crossing(name, producers[name], needing, cost, SINK if layout == NCHW else SOURCE)
    nhwc = cut.source_side()
    chosen = [NHWC if k in nhwc else NCHW for k in range(len(layers))]
    return [_explained(options[k][layout], candidates[k]) for k, layout in enumerate(chosen)]


def conversion_cost(box: Box, dtype: DType = FLOAT32) -> float:
    """Seconds to write a tensor in the other layout."""
    return costs.seconds(conversion_counts(box, dtype))


def conversion_counts(box: Box, dtype: DType = FLOAT32) -> Counts:
    """What that comes to: whole squares of channels and columns are moved in vectors."""
    channels, rows, columns = box
    squares = rows * (channels // LANES * LANES) * (columns // LANES * LANES) if dtype.itemsize == SLOT else 0
    return {"convert.operation": 1, "convert.square": squares, f"convert.{dtype.itemsize}": prod(box) - squares}


def _possible(layer: Layer, found: Sequence[Candidate]) -> Collection[str]:
    """Layouts in which it can make its output."""
    return {candidate.layout for candidate in found} if found else layer.layouts


def _cheapest(found: Sequence[Candidate], layout: str) -> Candidate | None:
    return min((c for c in found if c.layout == layout), key=lambda c: c.seconds, default=None)


def _choice(layer: Layer, layout: str, candidate: Candidate | None) -> Choice:
    if candidate:
        first = None if candidate.any_input else layout
        needs = (first, *[layout] * (len(layer.inputs) - 1))
        return Choice(layout=layout, needs=needs, kernel=candidate.kernel, seconds=candidate.seconds)
    return Choice(layout=layout, needs=(None if layer.any_input else layout,) * len(layer.inputs), kernel=layer.kernel_name)


def _explained(choice: Choice, found: Sequence[Candidate]) -> Choice:
    if not found:
        return choice
    most = _FAR * min(candidate.seconds for candidate in found)
    near = sorted((candidate for candidate in found if candidate.seconds <= most), key=lambda candidate: candidate.seconds)
    listed = ", ".join(f"{candidate.kernel} {candidate.layout} {candidate.seconds * 1e6:.1f} us" for candidate in near)
    return replace(choice, reason=listed)
