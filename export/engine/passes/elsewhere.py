"""Where each node runs: what ONNX Runtime computes faster, dense, than the engine does with masks, goes there; a minimum cut.

    minimise  sum_steps seconds(step, where it runs)  +  sum_tensors (cost of a part in ONNX Runtime that reads or makes them)

A step in the engine stands on the source's side of the cut (cut.py), one in ONNX Runtime on the sink's. Steps that have no times of their
own go with their neighbours. The engine keeps a step unless ONNX Runtime takes less than ENOUGH times as long: estimates err.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from ..ir import costs
from ..ir.network import Box
from ..reader.graph import Step
from .cut import NEVER, SINK, SOURCE, Cut

ENOUGH = 0.9
REASON = "dense, it is faster there"


def placed(steps: Sequence[Step], boxes: Mapping[str, Box]) -> list[Step]:
    """The steps, those without layers that run in ONNX Runtime; boxes: sizes of the tensors that layers make."""
    asked = [layer for step in steps for layer in step.layers or () if layer.seconds_elsewhere is not None]
    if not asked:
        return list(steps)
    cut, makers = Cut(), {name: k for k, step in enumerate(steps) for name in step.writes}
    for k, step in enumerate(steps):
        cut.edge(SOURCE, k, _picoseconds(_elsewhere(step)))
        cut.edge(k, SINK, NEVER if step.layers is None else _picoseconds(_here(step)))
    readers: dict[str, set[int]] = defaultdict(set)
    for k, step in enumerate(steps):
        for name in step.reads & makers.keys():
            readers[name].add(k)
    for name, reading in readers.items():
        for side in (SOURCE, SINK):
            cut.crossing(name, makers[name], reading, _picoseconds(_crossing(boxes.get(name))), side)
    here = cut.source_side()
    return [step if step.layers is None or k in here else replace(step, layers=None, reason=REASON) for k, step in enumerate(steps)]


def _here(step: Step) -> float:
    return sum(min(c.seconds for c in layer.candidates) for layer in step.layers or () if layer.seconds_elsewhere is not None)


def _elsewhere(step: Step) -> float:
    """A little more than nothing for steps without times: they stay here if nothing speaks against it."""
    found = [layer.seconds_elsewhere for layer in step.layers or ()]
    if any(layer.candidates and seconds is None for layer, seconds in zip(step.layers or (), found, strict=True)):
        return NEVER * 1e-12
    return 1e-12 + sum(seconds for seconds in found if seconds is not None) / ENOUGH


def _crossing(box: Box | None) -> float:
    return costs.seconds({"dense.part": 1, "convert.4": prod(box or (0,))})


def _picoseconds(seconds: float) -> int:
    return min(NEVER, round(seconds * 1e12))
