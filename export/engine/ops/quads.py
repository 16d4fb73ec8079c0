"""Convolutions and linear layers of integers, as passes/integers.py makes them of what stands between grids.

    s[f,p] = bias[f] + sum over kept quads of w[f,c,u,v,0:4] . x[c, p + offset(u,v), 0:4]           int32, exact
    y[f,p] = clip(round(s[f,p] * factor[f]) + zero, low, high)                                       factor = scale_x scale_w[f] / scale_y

or with a residual a sum of that and another tensor (quad_results.py). A weight that is dropped is 0, and a quad of zeros in no list: any
mask saves time as far as it drops four channels of a tap together. With a block mask M the products are those of M[c,p] & x, of which
bytes that are dropped are 0: the zero point of x is 0 then. (Depthwise ones drop results instead, whatever the zero point.)

The rows of x and y are at the same distance and lie one after another as one line, so that an offset is a constant for all positions;
strides have been made away with (`Phases`, ops/quad_maps.py), but for those that depthwise layers read by themselves. What stands in the
margins of x is its zero point: bias holds -zero_x * (sum of the kept weights). There are kernels with positions and with filters in the
lanes; which one runs is estimated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fineprune.ops.simd.quads import split, words

from ..ir import costs
from ..ir.conv import Margins, Op, View
from ..ir.costs import Counts
from ..ir.dtypes import FLOAT32, QUAD, UINT8, DType
from ..ir.grids import Grid
from ..ir.network import NCHW, Candidate, Layer
from . import quad_blend, quad_blocks, quad_depthwise, quad_expanded, quad_filters, quad_positions, quad_shared
from .margins import margins
from .quad_results import Residual

KERNELS: dict[str, Any] = {
    "quad_positions": quad_positions,
    "quad_shared": quad_shared,
    "quad_filters": quad_filters,
    "quad_expanded": quad_expanded,
    "quad_depthwise": quad_depthwise,
    "quad_blocks": quad_blocks,
}
USABLE = tuple(name for name, module in KERNELS.items() if getattr(module, "USABLE", True))
"""Those that are worth a thought on this CPU."""
TOGETHER = 4
"""Channels of a quad."""
_FEW_ZEROS = 0.3
"""More than an image of three channels has."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuadConv(Layer):
    """weights int16 [F,C/4,kh,kw,4], from -255 to 255; bias int64 [F]; factors float32 [F]; `source`: grid of x; `grid`: of its own result,
    before a residual (the second input); mask: bool [C/4,H,W,4], the blocks that are kept; `planes`: x is of
    uint8, and words are of four taps: weights [F,C,kh,kw/4,4], mask [C,H,W,4]; `size`: rows and columns of y; `depthwise`:
    filter f reads channel f of each phase alone.

    Without a grid y = s * factor is of float32, of one position. `kept`, `dense`: multiply-adds a sample.
    """

    weights: NDArray[np.int16]
    bias: NDArray[np.int64]
    factors: NDArray[np.float32]
    source: Grid
    grid: Grid | None
    mask: NDArray[np.bool_] | None = None
    low: int = 0
    high: int = 255
    pads: Margins = (0, 0, 0, 0)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (1, 1)
    depthwise: bool = False
    planes: bool = False
    residual: Residual | None = None
    kept: int = 0
    dense: int = 0

    layouts: ClassVar[tuple[str, ...]] = (NCHW,)

    @property
    def tied(self) -> bool:
        return not self._strided

    @property
    def _strided(self) -> bool:
        return self.depthwise and self.strides != (1, 1)

    @property
    def macs(self) -> int:
        return self.kept

    @property
    def macs_dense(self) -> int:
        return self.dense

    @property
    def limit(self) -> str:
        if self.planes:
            return ""
        if self.mask is not None and not self.depthwise:
            computed = self.mask[self.mask.any(-1)]
            dropped = 1 - float(computed.mean()) if computed.size else 0.0
            return f"{dropped:.0%} of the blocks that it computes are dropped (those of four channels are skipped together)"
        zeros = float((self.weights[self.weights.any(-1)] == 0).mean()) if self.weights.any() else 0.0
        wasteful = zeros > _FEW_ZEROS and not self.depthwise
        return f"{zeros:.0%} of the weights in its quads are zero (masks of the unit quad drop whole ones)" if wasteful else ""

    @property
    def margins(self) -> Margins:
        return self.pads

    @property
    def fingerprint(self) -> bytes:
        sizes = self.weights.shape, self.size, self.pads, self.strides, self.dilations, self.grid is None, len(self.inputs)
        mask = b"" if self.mask is None else np.packbits(self.mask).tobytes()
        return repr(sizes).encode() + np.packbits(self.weights.any(-1)).tobytes() + mask

    @property
    def zero(self) -> int:
        """The zero point of what it makes."""
        grid = self.residual.grid if self.residual else self.grid
        return grid.zero if grid else 0

    @property
    def alone(self) -> bool:
        return self.zero != 0

    @property
    def products(self) -> tuple[int, int]:
        """None of depthwise ones, which are fast here."""
        return (0, 0) if self.depthwise else (TOGETHER * int(self.weights.any(-1).sum()) * prod(self.size), self.dense)

    @property
    def takes_residual(self) -> bool:
        """Whether a tensor can be added to what it makes."""
        return self.residual is None and (self.mask is None or not self.depthwise) and not self._strided

    @property
    def alike(self) -> bool:
        """Where the grid ends with the clips: ONNX Runtime computes what stands before others in float32."""
        return all((part.low, part.high) == (0, 255) for part in (self, self.residual) if part is not None)

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """Quads or float32, of quads."""
        wanted = [UINT8 if self.planes else QUAD, QUAD][: len(inputs)]
        return (QUAD if self.grid else FLOAT32) if list(inputs) == wanted else None

    @cached_property
    def lists(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """(first entry of each filter and the end [F + 1], places (c,u,v) of the entries [n,3], their weights as words [n])."""
        f, *place = np.nonzero(self.weights.any(-1))
        rows, found = split(self.weights[f, place[0], place[1], place[2]])
        f, place = f[rows], [axis[rows] for axis in place]
        bounds = np.searchsorted(f, np.arange(len(self.weights) + 1))
        return bounds, np.stack(place, 1), words(found)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Its kernels, with the expected seconds."""
        return tuple(Candidate(kernel=k, layout=NCHW, any_input=False, seconds=costs.seconds(c)) for k, c in self.counts.items())

    @property
    def counts(self) -> dict[str, Counts]:
        """What it comes to, by kernel; rows are taken to be a column apart."""
        return {name: KERNELS[name].counts(self, *self.size) for name in self.kernels}

    @property
    def kernels(self) -> Sequence[str]:
        """Those that can run it and are worth a thought."""
        if self.depthwise:
            return ("quad_depthwise",)
        if self.mask is not None:
            return ("quad_blocks",)
        return [name for name in USABLE if name not in ("quad_depthwise", "quad_blocks")]

    def plan(self, kernel: str, *views: View) -> list[Op]:
        x, *residual, y = views
        ops = [*margins(y, self.zero), KERNELS[kernel].plan(self, x, residual[0] if residual else None, y)]
        return ops if self.mask is None or not self.depthwise else [*ops, quad_blend.plan(self, y)]


def as_quads(weights: NDArray) -> NDArray:
    """[F,C,kh,kw] as [F,ceil(C/4),kh,kw,4], filled up with zeros."""
    F, C, kh, kw = weights.shape
    filled = np.pad(weights, ((0, 0), (0, -C % TOGETHER), (0, 0), (0, 0)))
    return np.ascontiguousarray(filled.reshape(F, -1, TOGETHER, kh, kw).transpose(0, 1, 3, 4, 2))


def as_channels(quads: NDArray) -> NDArray:
    """The other way round: channels that filled the last quad up stay."""
    F, C, kh, kw, _ = quads.shape
    return quads.transpose(0, 1, 4, 2, 3).reshape(F, C * TOGETHER, kh, kw)
