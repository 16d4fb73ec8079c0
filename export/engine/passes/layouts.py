"""Which kernel runs each convolution, and in which layout each tensor is made: a minimum cut.

    minimise  sum_layers cost(layer, layout of its output)  +  sum_tensors (cost of each conversion that some reader needs)

A layer in layout NHWC stands on the source's side of the cut, one in NCHW on the sink's. An edge u -> v is paid where u is on the
source's side and v on the sink's: its own costs tie a layer to source and sink; and a tensor p that is NHWC while some reader needs
NCHW pays once, however many do, through one node for all readers (and the same the other way round). Every term is submodular, so
that the minimum cut is the best choice, not an approximation.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from fineprune.ops.simd import LANES

from ..ir import costs
from ..ir.costs import Counts
from ..ir.dtypes import FLOAT32, SLOT, DType
from ..ir.network import LAYOUTS, NCHW, NHWC, Box, Candidate, Layer

_NEVER = 1 << 60


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
    cut = _Cut()
    producers = {layer.output: k for k, layer in enumerate(layers)}
    for k, layer in enumerate(layers):
        for layout, (start, end) in ((NHWC, (k, "sink")), (NCHW, ("source", k))):
            found = best[k][layout]
            seconds = found.seconds if found else layer.seconds(boxes[layer.output], layout)
            cut.edge(start, end, round(seconds * 1e12) if layout in options[k] else _NEVER)
    readers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for k, layer in enumerate(layers):
        for position, name in enumerate(layer.inputs):
            readers[name].append((k, position))
    for name, uses in readers.items():
        if name in producers:
            cost = round(conversion_cost(boxes[name], types.get(name, FLOAT32)) * 1e12)
            for layout in LAYOUTS:
                needing = {k for k, position in uses if layout in options[k] and options[k][layout].needs[position] == layout}
                cut.conversion(name, producers[name], needing, cost, layout)
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
    listed = ", ".join(f"{c.kernel} {c.layout} {c.seconds * 1e6:.1f} us" for c in sorted(found, key=lambda c: c.seconds))
    return replace(choice, reason=listed)


Node = int | str | tuple[str, str]


class _Cut:
    """A flow network with integer capacities."""

    def __init__(self) -> None:
        self._capacity: dict[Node, dict[Node, int]] = defaultdict(lambda: defaultdict(int))

    def edge(self, start: Node, end: Node, capacity: int) -> None:
        self._capacity[start][end] += capacity
        self._capacity[end][start] += 0

    def conversion(self, name: str, producer: int, readers: set[int], cost: int, layout: str) -> None:
        """Paid once where the producer's layout is the other one and a reader's layout is `layout`."""
        shared = (name, layout)
        for reader in readers:
            self._directed(shared, reader, _NEVER, layout == NCHW)
        if readers:
            self._directed(producer, shared, cost, layout == NCHW)

    def _directed(self, start: Node, end: Node, capacity: int, forward: bool) -> None:
        if forward:
            self.edge(start, end, capacity)
        else:
            self.edge(end, start, capacity)

    def source_side(self) -> set[Node]:
        """The nodes on the source's side of a minimum cut: what a maximum flow (Edmonds-Karp) leaves within reach."""
        while True:
            parents: dict[Node, Node] = {"source": "source"}
            queue: deque[Node] = deque(["source"])
            while queue and "sink" not in parents:
                node = queue.popleft()
                for neighbour, capacity in self._capacity[node].items():
                    if capacity > 0 and neighbour not in parents:
                        parents[neighbour] = node
                        queue.append(neighbour)
            if "sink" not in parents:
                return set(parents)
            path: list[tuple[Node, Node]] = []
            node = "sink"
            while node != "source":
                path.append((parents[node], node))
                node = parents[node]
            flow = min(self._capacity[start][end] for start, end in path)
            for start, end in path:
                self._capacity[start][end] -= flow
                self._capacity[end][start] += flow
