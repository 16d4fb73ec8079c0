"""What a kind of mask declares of itself."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class MaskKind(Protocol):
    """One kind of mask that a convolution carries; a bool tensor says what is kept."""

    @property
    def name(self) -> str:
        """The key of its masks in bundles, manifests and settings; the layer's buffer is called NAME_mask."""
        ...

    @property
    def what(self) -> str:
        """What it drops, in tables."""
        ...

    def shape(self, weight: Sequence[int], groups: int, output: Sequence[int | None]) -> tuple[int | None, ...]:
        """Of the mask, for weight[F,C/groups,kh,kw] and an output of `output` positions (None: not known)."""
        ...

    def as_block_mask(self, mask: Tensor) -> Tensor | None:
        """What it drops at output positions, bool [C,oh,ow]."""
        ...

    def as_weight_mask(self, mask: Tensor) -> Tensor | None:
        """What it drops of the weights, bool [F,C/groups,kh,kw]: layers, counts, export and engine need nothing else of it."""
        ...

    def kept_in_file(self, blocks: float, weights: float) -> float:
        """Of the fractions that an exported file keeps of blocks and of weights (zeros, whatever dropped them): that of what it masks."""
        ...


def buffer(kind: MaskKind) -> str:
    """What a layer, and its network's state dict, call a mask."""
    return f"{kind.name}_mask"


def label(kind: MaskKind) -> str:
    """How messages name a kind."""
    return kind.name.upper()
