"""Every kernel that a convolution is offered, with input, output and residual in every layout, in a program, against the naive loop."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fineprune.export.engine.ir.conv import ConvShape
from fineprune.export.engine.ir.network import LAYOUTS, Box, Candidate, Layer
from fineprune.export.engine.ops.conv import CONVOLUTIONS, Conv
from fineprune.export.engine.ops.pools import Pool
from fineprune.export.engine.passes.program import Program, build
from fineprune.export.engine.run.threads import Team
from support.reference import masked_conv2d
from support.tolerances import FLOAT32

SHAPES = {
    "3x3": ConvShape(channels=5, filters=19, height=7, width=9, kernel=(3, 3), pads=(1, 1, 1, 1)),
    "pointwise": ConvShape(channels=18, filters=33, height=5, width=7, kernel=(1, 1)),
    "strides": ConvShape(channels=3, filters=5, height=9, width=18, kernel=(3, 2), strides=(2, 3), pads=(2, 0, 1, 1), dilations=(1, 2)),
    "groups": ConvShape(channels=6, filters=34, height=6, width=5, kernel=(2, 3), pads=(0, 1, 0, 1), groups=2),
    "depthwise": ConvShape(channels=21, filters=21, height=6, width=7, kernel=(3, 3), strides=(1, 2), pads=(1, 1, 1, 1), groups=21),
    "two filters a channel": ConvShape(channels=17, filters=34, height=5, width=4, kernel=(3, 1), pads=(1, 0, 1, 0), groups=17),
    "one channel": ConvShape(channels=1, filters=1, height=3, width=5, kernel=(3, 3), pads=(1, 1, 1, 1)),
    "one position": ConvShape(channels=7, filters=35, height=3, width=2, kernel=(3, 2)),
}
MASKS = {"dense": (1.0, None), "weights": (0.4, None), "blocks": (1.0, 0.6), "both": (0.4, 0.6)}
"""Densities of weights and of blocks."""


@cache
def layer_of(shape: str, masks: str) -> tuple[Conv, Any, Any]:
    """(the convolution, x, what it makes of it without a residual)."""
    s, (density, kept) = SHAPES[shape], MASKS[masks]
    random = np.random.default_rng(0)
    weights = random.standard_normal((s.filters, s.channels // s.groups, *s.kernel), np.float32)
    weights *= random.random(weights.shape) < density
    mask = None if kept is None else random.random((s.channels, *s.output)) < kept
    if mask is not None:
        mask[-1] &= s.channels == 1  # a channel that nobody keeps
    bias = random.standard_normal(s.filters, np.float32)
    x = random.standard_normal((s.channels, s.height, s.width), np.float32)
    y = masked_conv2d(x[None], weights, bias, mask, s.strides, s.pads, s.dilations, s.groups)[0]
    return Conv(name="conv", inputs=("x",), output="y", shape=s, weights=weights, bias=bias, mask=mask, low=-0.5, high=0.7), x, y


def program_of(layer: Conv, candidate: Candidate, layout: str) -> Program:
    """x and the residual are made in `layout`, by pools of a window of one place; the convolution by `candidate`."""
    copies: list[Layer] = [
        Pool(name=name, inputs=(f"{name}0",), output=name, kind="max", kernel=(1, 1), strides=(1, 1), pads=(0, 0, 0, 0))
        for name in layer.inputs
    ]
    box = (layer.shape.channels, layer.shape.height, layer.shape.width)
    boxes: dict[str, Box] = {"x": box, "x0": box} | dict.fromkeys(("r0", "r", "y"), (layer.shape.filters, *layer.shape.output))

    def only(layers: Sequence[Layer], boxes: Any, found: Any) -> Any:
        in_layout = Candidate(kernel="", layout=layout, any_input=True, seconds=1e-6)
        return [[candidate] if isinstance(k, Conv) else [in_layout] for k in layers]

    program = build([*copies, layer], boxes, [f"{name}0" for name in layer.inputs], ["y"], only)
    made = {operation.name: operation for operation in program.operations}
    assert {made[name].layout for name in layer.inputs} == {layout}
    assert (made["conv"].kernel, made["conv"].layout) == (candidate.kernel, candidate.layout)
    return program


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pair_of_layouts(shape: str, masks: str) -> None:
    layer, x, y = layer_of(shape, masks)
    random = np.random.default_rng(1)
    r = random.standard_normal(y.shape, np.float32)
    offered = layer.candidates
    alone = {"linear"} if shape == "one position" and layer.mask is None else CONVOLUTIONS.keys() - {"linear"}
    assert {candidate.kernel for candidate in offered} == alone
    for candidate in offered:
        for layout in LAYOUTS:
            for inputs, feeds, expected in ((("x",), [x], y), (("x", "r"), [x, r], y + r)):
                program, result = program_of(replace(layer, inputs=inputs), candidate, layout), np.zeros((1, *y.shape), np.float32)
                Team(program, 1).run(1, [*(feed[None] for feed in feeds), result])
                label = f"{candidate.kernel} from {layout} to {candidate.layout}, {len(inputs)} inputs"
                np.testing.assert_allclose(result[0], np.clip(expected, -0.5, 0.7), *FLOAT32, err_msg=label)
