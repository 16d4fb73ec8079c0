"""Where the tensors of a sample lie: buffers with zero margins, used again by later tensors of the same geometry.

Two tensors share a buffer only if layout, type, sizes and margins are alike: the margins are zeroed once, when the arena is made, and
stay so. A tensor of which parts are never written, because they are zero, has a buffer of its own.

Quads (ir/dtypes.py) lie closer: the margin right of a row is the margin left of the next one, and what lies below a channel is what lies
above the next one. Kernels run over the rows as one line, from the first position to the last, in whole vectors: gaps between rows, and
up to a vector behind a channel, are written as well, always with what lies in the margins. The first position of a channel begins a
vector: what is read and written in its place (1x1 convolutions, outputs, residuals) crosses no cache lines. `ties` are pairs of tensors
of which a kernel needs the rows at the same distance.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fineprune.common.errors import RunError
from fineprune.ops.simd import LANES

from ..ir.conv import Margins, View
from ..ir.dtypes import FLOAT32, QUAD, SLOT, DType, per_slot
from ..ir.network import Box

GUARD = 2 * LANES
"""Slots around a buffer that kernels may read."""
LARGEST_ARENA = 1 << 29
"""Slots of one sample's activations: 2 GiB."""


@dataclass(frozen=True)
class Key:
    """A tensor in a layout, of a type; the same tensor may lie in memory in both layouts."""

    tensor: str
    layout: str
    dtype: DType = FLOAT32


@dataclass(frozen=True, kw_only=True)
class Arena:
    """`views` of all keys, the `buffer` that each lies in, and the slots of all buffers."""

    views: dict[Key, View]
    buffers: dict[Key, int]
    size: int


def rounded(count: int, unit: int = LANES) -> int:
    """The next multiple of `unit`."""
    return -(-count // unit) * unit


def arena(
    boxes: Mapping[Key, Box],
    margins: Mapping[Key, Margins],
    uses: Mapping[Key, Sequence[int]],
    over: Mapping[Key, Key] | None = None,
    alone: Collection[Key] = (),
    ties: Sequence[tuple[Key, Key]] = (),
) -> Arena:
    """Lay out tensors of sizes `boxes`; `uses`: numbers of the instructions that write or read each. RunError where they are too many.

    over: tensors that may be written over the one that their instruction reads, where that is its last use.
    alone: tensors that share no buffer.
    ties: tensors whose rows are at the same distance.
    """
    alike: dict[tuple[str, DType, Box], Margins] = defaultdict(lambda: (0, 0, 0, 0))
    for key, box in boxes.items():  # the same margins for tensors of the same size: then they can share
        group = (key.layout, key.dtype, box)
        top, left, bottom, right = (max(pair) for pair in zip(alike[group], margins.get(key, (0, 0, 0, 0)), strict=True))
        alike[group] = (top, left, bottom, right)
    pitches = _pitches(alike, [tuple((key.layout, key.dtype, boxes[key]) for key in pair) for pair in ties])
    free: dict[View, list[tuple[int, int]]] = defaultdict(list)  # geometry -> (last use, number of the buffer)
    views: dict[Key, View] = {}
    buffers: dict[Key, int] = {}
    starts: list[int] = []
    end = GUARD
    for key in sorted(boxes, key=lambda key: min(uses[key])):
        group = key.layout, key.dtype, boxes[key]
        shape, size = geometry(key.layout, boxes[key], alike[group], key.dtype, pitches.get(group))
        begin, same = min(uses[key]), buffers.get(over[key]) if over and key in over else None
        idle = [entry for entry in free[shape] if entry[0] < begin or entry == (begin, same)]
        if idle and key not in alone:
            entry = max(idle)  # what was used last is likely to be in a cache
            free[shape].remove(entry)
            number = entry[1]
        else:
            number = len(starts)
            starts.append(end)
            end = rounded(end + -(-size // per_slot(key.dtype)) + GUARD)
            if end > LARGEST_ARENA:
                raise RunError(
                    f"the activations of one sample need more than {LARGEST_ARENA * SLOT >> 20} MiB; the file is damaged or too large"
                )
        if key not in alone:
            free[shape].append((max(uses[key]), number))
        buffers[key], views[key] = number, at(shape, starts[number] * per_slot(key.dtype))
    return Arena(views=views, buffers=buffers, size=end + GUARD)


_Group = tuple[str, DType, Box]


def _pitches(alike: Mapping[_Group, Margins], ties: Sequence[Any]) -> dict[_Group, int]:
    """Distance of the rows of quads: enough for the widest of those that are tied to each other."""
    roots = {group: group for group in alike if group[1] == QUAD}

    def root(group: _Group) -> _Group:
        while roots[group] != group:
            group = roots[group]
        return group

    for one, other in ties:
        roots[root(one)] = root(other)
    widest: dict[_Group, int] = defaultdict(int)
    for group in roots:
        _, left, _, right = alike[group]
        widest[root(group)] = max(widest[root(group)], group[2][2] + max(left, right))
    return {group: widest[root(group)] for group in roots}


def geometry(
    layout: str, box: Box, margins: Margins = (0, 0, 0, 0), dtype: DType = FLOAT32, pitch: int | None = None
) -> tuple[View, int]:  # fmt: skip
    """(the view of a buffer that begins at 0, numbers in the buffer); pitch: distance of the rows of quads (None: the least)."""
    channels, height, width = box
    rows, columns = height + margins[0] + margins[2], width + margins[1] + margins[3]
    if dtype == QUAD:
        pixel, row = 1, max(pitch or 0, width + max(margins[1], margins[3]))
        line = (height - 1) * row + width
        channel = rounded(max(row * (height + max(margins[0], margins[2])), line))
        size = rounded(row * margins[0] + margins[1]) + channel * channels + row * margins[2]
    elif layout == "NHWC":
        pixel = rounded(channels)
        channel, row = 1, pixel * columns
        size = row * rows
    else:
        pixel, row = 1, columns
        channel = max(2, row * rows)  # 1 would look like the other layout
        size = channel * channels
    if math.prod(box) > LARGEST_ARENA or size > LARGEST_ARENA:
        raise RunError(f"a tensor of {box} with margins {margins} is larger than the engine allows; the file is damaged or too large")
    start = margins[0] * row + margins[1] * pixel
    view = View(
        start=rounded(start) if dtype == QUAD else start,
        channels=channels,
        height=height,
        width=width,
        channel_stride=channel,
        row_stride=row,
        pixel_stride=pixel,
        margins=margins,
        dtype=dtype,
    )
    return view, size


def at(view: View, start: int) -> View:
    """The view of a buffer that begins at number `start` instead of 0."""
    return replace(view, start=view.start + start)


def outside(box: Box, dtype: DType) -> View:
    """A sample in an array of the caller: [channels, height, width], dense."""
    channels, height, width = box
    return View(
        start=0, channels=channels, height=height, width=width, channel_stride=height * width, row_stride=width, pixel_stride=1, dtype=dtype
    )
