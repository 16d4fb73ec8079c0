"""The kinds of masks. Everything that handles masks loops over them."""

from collections.abc import Iterable

from .blocks import BLOCKS
from .kind import MaskKind
from .weights import WEIGHTS

KINDS: tuple[MaskKind, ...] = (BLOCKS, WEIGHTS)
"""In the order in which they are pruned, unless a method of weights goes first."""


def in_order(names: Iterable[str]) -> list[MaskKind]:
    """The kinds in the order of their `names`, such as the keys of ratios; those that are not among them come last."""
    given = list(names)
    return sorted(KINDS, key=lambda kind: given.index(kind.name) if kind.name in given else len(given))


__all__ = ["BLOCKS", "KINDS", "WEIGHTS", "MaskKind", "in_order"]
