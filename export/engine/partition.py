"""A graph cut into segments that run one after another, each wholly in the engine or wholly in ONNX Runtime: as few as possible."""

from collections.abc import Sequence
from dataclasses import dataclass

from .graph import Graph, Step
from .network import Layer


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
        return [layer for step in self.steps for layer in step.layers or ()]


def segments(graph: Graph) -> list[Segment]:
    """In the order in which they run; none for a graph without layers."""
    parts = _parts(graph)
    wanted = {graph.values[port.name].tensor if port.name in graph.values else port.name for port in graph.outputs}
    result: list[Segment] = []
    for native, steps in reversed(parts):
        if native:
            layers = [layer for step in steps for layer in step.layers or ()]
            made = list(dict.fromkeys(layer.output for layer in layers))
            needed = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
        else:
            made = list(dict.fromkeys(name for step in steps for name in sorted(step.writes)))
            needed = list(dict.fromkeys(name for step in steps for name in sorted(step.reads) if name not in graph.constants))
        inputs = tuple(name for name in needed if name not in set(made))
        outputs = tuple(name for name in made if name in wanted)
        if made:
            result.append(Segment(native=native, steps=tuple(steps), inputs=inputs, outputs=outputs))
        wanted |= set(inputs) if native else {graph.values[name].tensor if name in graph.values else name for name in inputs}
    return result[::-1]


def _parts(graph: Graph) -> list[tuple[bool, list[Step]]]:
    """Greedy: everything that can run in the engine, then everything that can run in ONNX Runtime, and so on."""
    made = {name for step in graph.steps for name in step.writes}
    waiting: Sequence[Step] = graph.steps
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
