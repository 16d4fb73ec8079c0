"""From calibration images to an integer network that loses no more than it may.

Layers go back to float32 one by one, those first whose integers alone change the outputs most, E ||y - y_layer||^2 over the calibration
images, until score(float32) - score(int8) <= max_drop on the images that judge; the score is an accuracy in per cent, or another figure.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import UsageError
from fineprune.common.progress import Progress, Silent
from fineprune.ops.ranges import RANGES, RANGES_DEFAULT

from ..graph import is_masked_conv
from ..transform import name_after_weights
from .observe import Arrays, Runner, copied, histograms
from .rewrite import layers, measured, quantise

IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class Int8Config:
    """ranges: a name of `RANGES`; images: how many calibrate; max_drop: percentage points of accuracy that int8 may cost (None: any), or so
    much of another figure that a judge has."""

    ranges: str = RANGES_DEFAULT
    images: int = IMAGES
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.ranges not in [*RANGES]:
            raise UsageError(f"int8 ranges are {', '.join(RANGES)}, got {self.ranges!r}")
        if type(self.images) is not int or self.images < 1:
            raise UsageError(f"int8 images is a whole number of at least 1, got {self.images!r}")
        if self.max_drop is not None and not (type(self.max_drop) in (int, float) and 0 <= self.max_drop <= 100):
            raise UsageError(f"max_drop is a number of percentage points between 0 and 100, got {self.max_drop!r}")


def agreement(outputs: NDArray, exact: NDArray) -> float:
    """Per cent of the samples that get the same class in both."""
    return 100 * float((outputs.argmax(1) == exact.argmax(1)).mean())


@dataclass(frozen=True, kw_only=True)
class Judge:
    """score(outputs, those of the float32 network), the higher the better, of images[N,C,H,W], of which `max_drop` may be lost."""

    images: NDArray[np.float32]
    score: Callable[[NDArray, NDArray], float] = agreement


@dataclass(kw_only=True)
class Quantiser:
    """`apply` puts a graph on grids chosen on samples; `kept` then names the layers that stay in float32."""

    samples: Arrays
    config: Int8Config = field(default_factory=Int8Config)
    judge: Judge | None = None
    progress: Progress = field(default_factory=Silent)
    kept: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    block_masked: tuple[str, ...] = ()
    """Layers with block masks, which runtimes that do not know their function compute in float32."""

    def apply(self, model: Any, opset: int) -> None:
        """Rewrite the graph in place. UsageError where it has no layer for integers, or a drop cannot be judged."""
        nodes = layers(model)
        name_after_weights(node for node in nodes if node.op_type == "Gemm")  # simplify() did so for convolutions
        self.layers = tuple(node.name for node in nodes)
        self.block_masked = tuple(node.name for node in model.graph if is_masked_conv(node))
        if not self.layers:
            raise UsageError("the network has no convolution or linear layer that int8 could take; export it without int8")
        found = histograms(model, measured(model), self.samples, opset, self.progress)
        ranges = {name: RANGES[self.config.ranges](histogram) for name, histogram in found.items()}
        if self.config.max_drop is not None:
            self.kept = self._kept(model, ranges, opset, self.config.max_drop)
        quantise(model, ranges, self.kept)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        layers = {"layers": len(self.layers), "kept_in_float32": list(self.kept), "block_masked": list(self.block_masked)}
        return {**asdict(self.config), "images": len(self.samples[0] if isinstance(self.samples, tuple) else self.samples), **layers}

    def _kept(self, model: Any, ranges: dict[str, tuple[float, float]], opset: int, allowed: float) -> tuple[str, ...]:
        """The fewest layers, worst first, that have to stay in float32."""
        if self.judge is None:
            raise UsageError("max_drop needs images to judge by; give data")
        judge = self.judge

        def logits(kept: tuple[str, ...], images: Arrays, what: str) -> NDArray[np.float32]:
            candidate = copied(model)
            quantise(candidate, ranges, kept)
            return Runner(candidate, opset).logits(images, self.progress, what)

        def enough(kept: tuple[str, ...], what: str) -> bool:
            return judge.score(logits(kept, judge.images, what), before) >= least

        exact = Runner(model, opset)
        before = exact.logits(judge.images, self.progress, "float32")
        least = judge.score(before, before) - allowed - 1e-9
        if enough((), "int8"):
            return ()
        expected, errors = exact.logits(self.samples, self.progress, "float32"), {}
        for name in self.layers:
            others = tuple(layer for layer in self.layers if layer != name)
            errors[name] = float(((logits(others, self.samples, name) - expected).astype(np.float64) ** 2).mean())
        worst = sorted(self.layers, key=lambda name: -errors[name])
        some = (tuple(worst[:count]) for count in range(1, len(worst)))
        return next((kept for kept in some if enough(kept, f"{len(kept)} kept")), tuple(worst))
