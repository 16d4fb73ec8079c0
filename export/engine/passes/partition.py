"""A graph cut into segments that run one after another, each wholly in the engine or wholly in ONNX Runtime: as few as possible."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.network import Layer
from ..reader.graph import Graph, Step


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive steps. `inputs`, `outputs`: tensors for the engine, names of the file for ONNX Runtime."""

    native: bool
    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def layers(self) -> list[Layer]:
        """Of a segment of the engine."""
        return _layers(self.steps)


def segments(graph: Graph) -> list[Segment]:
    """In the order in which they run; none for a graph without layers."""
    if graph.whole or graph.constants is None:
        names = [tuple(port.name for port in ports) for ports in (graph.inputs, graph.outputs)]
        return [Segment(native=False, steps=(), inputs=names[0], outputs=names[1])]
    parts = _parts(_without_islands(graph.steps))
    wanted = {graph.values[port.name].tensor if port.name in graph.values else port.name for port in graph.outputs}
    result: list[Segment] = []
    for native, steps in reversed(parts):
        if native:
            layers = _layers(steps)
            made = list(dict.fromkeys(layer.output for layer in layers))
            needed = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
        else:
            made = list(dict.fromkeys(name for step in steps for name in sorted(step.writes)))
            needed = list(dict.fromkeys(name for step in steps for name in sorted(step.reads) if name not in graph.constants))
        inputs = tuple(name for name in needed if name not in set(made))
        outputs = tuple(name for name in made if name in wanted)
        if not outputs:  # nobody reads what these steps make
            continue
        result.append(Segment(native=native, steps=tuple(steps), inputs=inputs, outputs=outputs))
        wanted |= set(inputs) if native else {graph.values[name].tensor if name in graph.values else name for name in inputs}
    return result[::-1]


def _without_islands(steps: Sequence[Step]) -> list[Step]:
    """Where all that the engine could do between nodes of ONNX Runtime is to move numbers or to map them one by one, they stay there."""
    parts = _parts(steps)
    if len(parts) == 1:
        return list(steps)
    easy = [taken for native, taken in parts if native and all(layer.easy for layer in _layers(taken))]
    islands = {id(step) for taken in easy for step in taken}
    return [replace(step, layers=None, reason="between others") if id(step) in islands else step for step in steps]


def _layers(steps: Sequence[Step]) -> list[Layer]:
    return [layer for step in steps for layer in step.layers or ()]


def _parts(steps: Sequence[Step]) -> list[tuple[bool, list[Step]]]:
    """Greedy: everything that can run in the engine, then everything that can run in ONNX Runtime, and so on."""
    made = {name for step in steps for name in step.writes}
    waiting = steps
    parts: list[tuple[bool, list[Step]]] = []
    native = True
    while waiting:
        taken, left = [], []
        for step in waiting:
            if (step.layers is not None) == native and not step.reads & made:
                taken.append(step)
                made -= step.writes
            else:
                left.append(step)
        if taken:
            parts.append((native, taken))
        waiting, native = left, not native
    return parts
