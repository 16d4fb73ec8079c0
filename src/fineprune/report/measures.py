"""What figures in a manifest, or in a file of another command, are: accuracies, or what a user measures by."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any, NamedTuple, Self

from fineprune.common.figures import written

from ..manifest import measured
from ..pictures import plain

_AXIS = 28
"""Letters that fit along the axis of a figure."""


class Measure(NamedTuple):
    """How it is called, its unit (None: a share, written in per cent), and whether more of it is better."""

    name: str
    unit: str | None
    higher_is_better: bool

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """As `measure`, `unit` and `higher_is_better` of a file say; accuracy where they say nothing."""
        return cls(measured(facts), facts.get("unit"), facts.get("higher_is_better") is not False)

    @property
    def scale(self) -> int:
        """What values are drawn times."""
        return 100 if self.unit is None else 1

    @property
    def axis(self) -> str:
        """As text of a figure, in lines that fit along it."""
        return fill(plain(f"{self.name}, %" if self.unit is None else f"{self.name} {self.unit}".rstrip()), _AXIS)

    def written(self, value: float | None) -> str:
        """As text; empty for None."""
        return "" if value is None else written(value, self.unit)
