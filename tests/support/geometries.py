"""Convolutions to test on: a random one of any geometry for hypothesis, and a short list that has each kind once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.reference import output_size

if TYPE_CHECKING:
    from torch import Tensor

    from fineprune.calibrate.convolutions import ConvSite

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of one convolution and of its input."""

    samples: int = 2
    channels: int = 2
    filters: int = 3
    size: Pair = (7, 5)
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def output(self) -> Pair:
        return output_size(self.size, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def site(self) -> "ConvSite":
        """What a calibration pass knows of it."""
        from fineprune.calibrate.convolutions import ConvSite

        sizes = {"in_channels": self.channels, "out_channels": self.filters, "groups": self.groups}
        return ConvSite(name="it", kernel=self.kernel, output_size=self.output, **sizes)

    @property
    def where(self) -> tuple[Pair, Pair, Pair]:
        """(stride, padding, dilation)."""
        return self.stride, self.padding, self.dilation

    @property
    def options(self) -> dict[str, object]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


KINDS = {
    "plain": Geometry(padding=(1, 1)),
    "stride": Geometry(stride=(2, 3), padding=(1, 0)),
    "dilation": Geometry(kernel=(2, 3), padding=(2, 1), dilation=(3, 1)),
    "groups": Geometry(channels=6, filters=4, kernel=(3, 2), padding=(1, 1), groups=2),
    "depthwise": Geometry(channels=3, filters=6, padding=(1, 1), stride=(2, 1), groups=3),
    "one-channel": Geometry(channels=1, filters=5, kernel=(5, 3), padding=(2, 1)),
    "pointwise": Geometry(channels=3, filters=5, kernel=(1, 1)),
    "pointwise-stride-padding": Geometry(channels=4, filters=2, kernel=(1, 1), stride=(2, 2), padding=(1, 2), groups=2),
    "one-position": Geometry(size=(3, 3), channels=3, filters=2),
}
"""One convolution of each kind, of different sizes on every axis."""


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any small convolution that has an output."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_group, filters_per_group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 5]))
    kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (3, 3), (2, 3), (5, 1), (3, 2)]))
    stride, dilation = draw(_pairs(1, 3)), draw(_pairs(1, 2))
    padding = draw(_pairs(0, 2))
    least = [max(1, dilation[a] * (kernel[a] - 1) + 1 - 2 * padding[a]) for a in (0, 1)]
    size = (
        draw(st.sampled_from([s for s in (2, 3, 5, 7) if s >= least[0]] or [least[0]])),
        draw(st.sampled_from([s for s in (2, 3, 5, 7) if s >= least[1]] or [least[1]])),
    )
    return Geometry(
        samples=draw(st.sampled_from([1, 2, 3])),
        channels=groups * per_group,
        filters=groups * filters_per_group,
        size=size,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Random values of a geometry, float64."""

    x: NDArray
    w: NDArray
    bias: NDArray
    mask: NDArray
    """[C,oh,ow]"""
    masks: NDArray
    """[N,C,oh,ow]"""
    grad: NDArray
    """[N,F,oh,ow]"""

    def tensors(self, *names: str) -> "list[Tensor]":
        import torch  # tests of the engine have geometries, too, and need none

        return [torch.from_numpy(getattr(self, name)) for name in names]


def problem(geometry: Geometry, *, density: float = 0.6, seed: int = 0) -> Problem:
    """Normal values; each mask element is kept with probability `density`."""
    g, generator = geometry, np.random.default_rng(seed)
    return Problem(
        x=generator.normal(size=(g.samples, g.channels, *g.size)),
        w=generator.normal(size=(g.filters, g.channels // g.groups, *g.kernel)),
        bias=generator.normal(size=g.filters),
        mask=generator.random((g.channels, *g.output)) < density,
        masks=generator.random((g.samples, g.channels, *g.output)) < density,
        grad=generator.normal(size=(g.samples, g.filters, *g.output)),
    )


def _pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))
