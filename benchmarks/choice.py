"""How good the choice of a convolution's kernel is, on random layers of all sizes, densities and kinds of masks.

    python benchmarks/choice.py [--layers 100] [--json FILE]
    python benchmarks/choice.py --read FILE

Every kernel that can run a layer is measured in every form it has. What a table of costs (export/engine/ir/costs.py) expects to be the
fastest is chosen, and

    regret = time of what is chosen / time of the fastest

is shown for the table that is assumed of such registers, and for the one that is measured on this machine. The file has the times, from
which --read finds the regret of the costs as they are now, without measuring anything.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.export.engine.ir import costs
from fineprune.export.engine.ir.conv import ConvShape
from fineprune.export.engine.ir.costs import Costs
from fineprune.export.engine.ops.conv import CONVOLUTIONS, Conv
from fineprune.export.engine.run.trials import convolution, measured

TOGETHER = 40
"""Trials that take turns."""
FEWEST, MOST = 2e4, 1.2e7
"""Multiply-adds of a layer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=100, help="How many layers to measure.")
    parser.add_argument("--seed", type=int, default=0, help="Which layers: their numbers are drawn anew for each seed.")
    parser.add_argument("--seconds", type=float, default=4.0, help=f"How long to measure {TOGETHER} trials, which take turns.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the times into this JSON file.")
    parser.add_argument("--read", type=Path, metavar="FILE", help="Read the times from this JSON file instead of measuring.")
    arguments = parser.parse_args()
    record = json.loads(arguments.read.read_text()) if arguments.read else measure(arguments.layers, arguments.seed, arguments.seconds)
    if arguments.json:
        arguments.json.write_text(written(record))
    print(f"{len(record['layers'])} layers, {record['machine']['cpu']}, {record['registers']}")
    for name, table in (("assumed", Costs.assumed(record["registers"])), ("measured", Costs(record["costs"]))):
        print(said(name, list(regrets(record, table).values())))


def written(record: Mapping[str, Any]) -> str:
    """As JSON, a line for each layer; times in microseconds."""
    layers = ",\n".join(f"  {json.dumps(name)}: {json.dumps(times)}" for name, times in record["layers"].items())
    facts = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items() if name != "layers"]
    return "{\n" + ",\n".join([*facts, ' "layers": {\n' + layers + "\n }"]) + "\n}\n"


def said(name: str, found: list[float]) -> str:
    """A line about the regrets by a table."""
    median, most = np.quantile(found, (0.5, 0.9))
    return f"{name} costs: regret {median:.3f} in the median, {most:.3f} in 90 %, {max(found):.3f} in the worst case"


def measure(layers: int, seed: int, seconds: float) -> dict[str, Any]:
    """The times of all candidates of random layers, and the costs of this machine."""
    from fineprune.export.engine.run import machine
    from fineprune.export.machine import machine_facts

    found: dict[str, dict[str, float]] = {}
    waiting: list[tuple[str, Conv, str, Any]] = []

    def measure_waiting() -> None:
        times = measured([convolution(conv, kernel, form) for _, conv, kernel, form in waiting], seconds)
        for (name, _, kernel, form), time in zip(waiting, times, strict=True):
            found.setdefault(name, {})[key(kernel, form)] = round(float(time) * 1e6, 2)
        print(f"{len(found)} layers of {layers}", flush=True)
        waiting.clear()

    for name, conv in random_layers(layers, seed):
        waiting += [(name, conv, *candidate) for candidate in candidates(conv)]
        if len(waiting) >= TOGETHER:
            measure_waiting()
    if waiting:
        measure_waiting()
    facts = {"machine": machine_facts(), "registers": costs.registers(), "seed": seed}
    return {**facts, "costs": dict(machine.redone().nanoseconds), "layers": found}


def regrets(record: Mapping[str, Any], table: Costs) -> dict[str, float]:
    """By layer, where there is a choice among the forms that were measured and that kernels have now."""
    found = {}
    with costs.using(lambda: table):
        for name, conv in random_layers(len(record["layers"]), record["seed"]):
            times = record["layers"][name]
            known = [(expected(conv, *each), times[key(*each)]) for each in candidates(conv) if key(*each) in times]
            if len(known) > 1:
                found[name] = min(known)[1] / min(time for _, time in known)
    return found


def expected(conv: Conv, kernel: str, form: Any) -> float:
    """Seconds, by the table that holds."""
    return costs.seconds(CONVOLUTIONS[kernel].module.counts(conv.shape, conv.weights, conv.mask, form))


def candidates(conv: Conv) -> Iterator[tuple[str, Any]]:
    """Every kernel that it may be given, in every form."""
    for name, kernel in conv.kernels.items():
        if name == "plain":
            continue  # the obvious loops, which nothing is slower than
        for form in kernel.module.forms(conv.shape, conv.weights, conv.mask):
            yield name, form


def key(kernel: str, form: Any) -> str:
    """In words."""
    return " ".join([kernel, *(str(number) for number in (form if isinstance(form, tuple) else vars(form).values() if form else ()))])


def random_layers(count: int, seed: int) -> Iterator[tuple[str, Conv]]:
    """(name, layer)"""
    random = np.random.default_rng(seed)
    for number in range(count):
        shape = _shape(random)
        weights, kept = _weights(random, shape)
        mask, masked = _mask(random, shape)
        inputs = ("x", "r") if random.random() < 0.3 else ("x",)
        low = 0.0 if random.random() < 0.7 else -np.inf
        bias = random.standard_normal(shape.filters, np.float32)
        conv = Conv(name="layer", inputs=inputs, output="y", shape=shape, weights=weights, bias=bias, mask=mask, low=low)
        groups = f" in {shape.groups} groups" if shape.groups > 1 else ""
        size = f"{shape.channels}->{shape.filters}{groups} {shape.kernel[0]}x{shape.kernel[1]}/{shape.strides[0]} {shape.height}"
        yield f"{number}: {size}, {kept}, {masked}", conv


def _shape(random: np.random.Generator) -> ConvShape:
    while True:
        channels = int(random.choice([3, 8, 16, 16, 24, 32, 32, 48, 64, 64, 96, 128, 256]))
        filters = int(random.choice([8, 16, 16, 24, 32, 32, 48, 64, 64, 96, 128, 256]))
        side, kernel = int(random.choice([4, 7, 8, 8, 14, 16, 16, 28, 32, 32, 56])), int(random.choice([1, 1, 3, 3, 3, 3, 5]))
        stride, kind, groups = int(random.choice([1, 1, 1, 2])), random.random(), 1
        if kind < 0.1:
            filters = groups = channels
        elif kind < 0.15 and channels % 2 == filters % 2 == 0:
            groups = 2
        shape = ConvShape(
            channels=channels,
            filters=filters,
            height=side,
            width=side,
            kernel=(kernel, kernel),
            strides=(stride, stride),
            pads=(kernel // 2,) * 4,
            groups=groups,
        )
        if FEWEST < filters * channels // groups * kernel**2 * shape.output[0] * shape.output[1] < MOST:
            return shape


def _weights(random: np.random.Generator, shape: ConvShape) -> tuple[NDArray[np.float32], str]:
    """Kept ones in one of the ways in which methods keep them."""
    sizes = (shape.filters, shape.channels // shape.groups, *shape.kernel)
    weights = random.standard_normal(sizes, np.float32)
    depthwise = shape.groups == shape.channels
    kind = str(random.choice(["dense", "weights", "weights", "channel", "group", "2:4", "filters"]))
    density = float(random.choice([0.1, 0.2, 0.3, 0.45, 0.6]))
    if kind == "weights":
        kept = random.random(sizes) < density
    elif kind == "filters":
        kept = (random.random(sizes[0]) < density).reshape(-1, 1, 1, 1)
    elif kind == "channel" and not depthwise:
        kept = random.random((1, *sizes[1:])) < density
    elif kind == "group" and not depthwise:
        groups = max(1, shape.filters // 16)
        kept = (random.random((groups, *sizes[1:])) < density)[np.sort(random.integers(0, groups, shape.filters))]
    elif kind == "2:4" and sizes[1] % 4 == 0:
        fours = np.abs(weights).reshape(shape.filters, -1, 4, *shape.kernel)
        kept, density = (fours.argsort(2).argsort(2) >= 2).reshape(sizes), 0.5
    else:
        return weights, "dense"
    return weights * kept, f"{kind} {density}"


def _mask(random: np.random.Generator, shape: ConvShape) -> tuple[NDArray[np.bool_] | None, str]:
    """Kept blocks: none dropped; at random; as neighbours in the image are alike; whole channels."""
    sizes, kind = (shape.channels, *shape.output), str(random.choice(["random", "smooth", "smooth", "channels"]))
    density = float(random.choice([0.3, 0.5, 0.7, 0.9]))
    if random.random() < 0.6:
        return None, "all blocks"
    if kind == "random":
        return random.random(sizes) < density, f"random blocks {density}"
    if kind == "channels":
        kept = random.random(shape.channels) < density
        return np.broadcast_to(kept[:, None, None], sizes).copy(), f"channels {density}"
    field = random.standard_normal(sizes) + 0.7 * random.standard_normal(sizes[1:])
    for axis in (1, 2, 1, 2):
        field += np.roll(field, 1, axis) + np.roll(field, -1, axis)
    return field > np.quantile(field, 1 - density), f"smooth blocks {density}"


if __name__ == "__main__":
    main()
