"""The weights of a filter that make a unit, one by one."""

from collections.abc import Sequence
from itertools import product

Place = tuple[int, int, int]


def members(unit: str, channels: int, kernel: Sequence[int], order: Sequence[int] | None = None) -> dict[Place, list[Place]]:
    """Index of a unit among the scores of a filter -> (channel, row, column) of each of its weights."""
    size, width = {"weight": (1, 1), "pair": (2, 1), "quad": (4, 1), "row": (1, kernel[1])}[unit]
    found: dict[Place, list[Place]] = {}
    for at, channel in enumerate(range(channels) if order is None else order):
        for u, v in product(range(kernel[0]), range(kernel[1])):
            found.setdefault((at // size, u, v // width), []).append((channel, u, v))
    return found


UNITS = ("weight", "pair", "quad", "row")
