"""Where each node runs: what ONNX Runtime computes faster, dense, than the engine does with masks, goes there. In float32, a minimum cut:

    minimise  sum_steps seconds(step, where it runs)  +  sum_tensors (cost of a part in ONNX Runtime that reads or makes them)

A step in the engine stands on the source's side of the cut (cut.py), one in ONNX Runtime on the sink's. Steps that have no times of their
own go with their neighbours. The engine keeps a step if it is expected to take at most MARGIN times as long as ONNX Runtime: estimates
err, and what runs there is never slower than the dense network.

A network on grids goes there as a whole, or not at all:

    sum_layers seconds(layer, here)  >  MARGIN_ON_GRIDS * sum_layers seconds(layer, there),  where at least DENSE of its quads are computed

Where masks drop most quads every layer is faster here, and where they drop none the network gains nothing from being divided
(docs/notes/int8.md). It stays where ONNX Runtime would make other integers, on this CPU or another.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from ..ir import costs
from ..ir.dtypes import QUAD
from ..ir.network import Box, Layer
from ..reader.graph import Step
from .cut import NEVER, SINK, SOURCE, Cut
from .instructions import Instructions

MARGIN = 0.9
MARGIN_ON_GRIDS, DENSE = 1.15, 0.85
"""The first is above 1, since what is expected of ONNX Runtime's integers is less than they take, by 4 to 25 % and what a measurement on a
busy machine adds; whose masks save more than that is faster here, whatever is expected (docs/notes/int8.md)."""
_LEAST = 1e-12
"""Seconds of any step there: it stays here if nothing speaks against it."""
REASON = "dense, it is faster there"
WHOLE = "the whole network is faster there"


def placed(steps: Sequence[Step], boxes: Mapping[str, Box]) -> list[Step]:
    """The steps, those without layers that run in ONNX Runtime; boxes: sizes of the tensors that layers make."""
    if all(_elsewhere(step) in (_LEAST, math.inf) for step in steps):
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


def as_a_whole(layers: Sequence[Layer], plans: Sequence[Instructions], boxes: Mapping[str, Box]) -> bool:
    """Whether all that is planned for the engine, of these layers of the file, goes to ONNX Runtime; boxes: sizes of what they make."""
    done = [instruction for plan in plans for instruction in plan.list]
    if not any(QUAD in plan.dtypes.values() for plan in plans):
        return False
    if not all(layer.alike for layer in (*layers, *(each.layer for each in done if each.layer))):
        return False
    kept, dense = (sum(counts) for counts in zip(*(each.layer.products for each in done if each.layer), strict=True))
    if kept < DENSE * dense:
        return False
    here = sum(each.choice.seconds or 0.0 for each in done)
    return here > MARGIN_ON_GRIDS * sum(layer.seconds_on_grids(boxes[layer.output]) for layer in layers)


def left(steps: Sequence[Step]) -> list[Step]:
    """The steps, all of which run in ONNX Runtime."""
    return [step if step.layers is None else replace(step, layers=None, reason=WHOLE) for step in steps]


def _compared(step: Step) -> list[tuple[Layer, float]]:
    """The layers whose time in ONNX Runtime is known, and that time."""
    return [(layer, there) for layer in step.layers or () if (there := layer.seconds_elsewhere) is not None]


def _here(step: Step) -> float:
    """0 where there is no choice: estimates take time, and layers that are fused later are estimated again."""
    return sum(min(candidate.seconds for candidate in layer.candidates) for layer, there in _compared(step) if there < math.inf)


def _elsewhere(step: Step) -> float:
    return _LEAST + sum(there * MARGIN for _, there in _compared(step))


def _crossing(box: Box | None) -> float:
    return costs.seconds({"dense.part": 1, "convert.4": prod(box or (0,))})


def _picoseconds(seconds: float) -> int:
    return NEVER if seconds == math.inf else round(seconds * 1e12)
