"""What the numbers of pixels mean: which value is white, for arrays and for images of more than 8 bits.

Eight bits have white at 255, floating-point numbers have it at 1. Other ranges are understood where only one reading makes sense, with a
line that says so; else they are refused, and the user says `white=`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError

BYTE = 255
_BITS = (8, 10, 12, 14, 16)
_OVERSHOOT = 0.25
"""Sharpened and resampled floating-point images leave [0, white] by a part of white."""
_DARK = 64


@dataclass(frozen=True)
class Range:
    """Smallest and largest pixel; `whole` where all are whole numbers; `type` and `where` name the numbers and their place in messages."""

    low: float
    high: float
    whole: bool
    type: str
    where: str

    def __str__(self) -> str:
        return f"{self.type} from {self.low:.6g} to {self.high:.6g}"


@dataclass(frozen=True)
class Units:
    """What the caller says: white; whether mean 0 and std 1 ask for pixels as they are, or mean and std are in units beyond [0,1]."""

    white: float | None = None
    prepared: bool = False
    beyond_one: bool = False


@dataclass(frozen=True)
class Scale:
    """Pixels are divided by `white`; None takes them as they are, in [0,1] or (`scaled` false) in units that only mean and std know.

    note: what was chosen, where that is not the usual.
    """

    white: float | None
    note: str | None = None
    scaled: bool = True


def range_of(pixels: NDArray, type_name: str, where: str) -> Range:
    """Of one array. RunError, naming `where`, for NaN and infinite values."""
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RunError(f"{where}: images hold NaN or infinite values")
    floating = pixels.dtype.kind == "f"
    return Range(low, high, not floating or (1 < high <= BYTE and bool((pixels == np.trunc(pixels)).all())), type_name, where)


def joined(ranges: Iterable[Range]) -> Range:
    """One range around several; the one that goes furthest gives the names."""
    found = list(ranges)
    lowest, highest = min(found, key=lambda r: r.low), max(found, key=lambda r: r.high)
    furthest = lowest if lowest.low < 0 and -lowest.low > highest.high else highest
    return Range(lowest.low, highest.high, all(r.whole for r in found), furthest.type, furthest.where)


def scale_of(found: Range, units: Units, *, floating: bool, bits: int) -> Scale:
    """What white is for pixels in the range `found`.

    floating: numbers with a fraction, else whole ones, of which `bits` are usual (8 or 16). Raises RunError for a range that has no single
    sensible reading.
    """
    if units.white is not None:
        check_range(found, units.white, floating=floating)
        return Scale(units.white)
    return _of_floats(found, units) if floating else _of_integers(found, bits)


def check_range(found: Range, white: float, *, floating: bool) -> None:
    """RunError where `found` lies outside 0 to white (by more than a quarter of white for floating-point numbers)."""
    slack = _OVERSHOOT * white if floating else 0.0
    if found.low < -slack or found.high > white + slack:
        raise RunError(f"{found.where}: pixels are {found}, but white is {white:.6g}; give another white= or scale them")


def _of_integers(found: Range, bits: int) -> Scale:
    limit = 2**bits - 1
    if found.low < 0 or found.high > limit:
        expected = "integers of 0 to 255" if bits == 8 else f"integers of 0 to {limit}"
        raise RunError(
            f"{found.where}: pixels are {expected} or floating-point, got {found}; scale them, or say which value is white (white=)"
        )
    if found.high == 1:
        return Scale(1.0, f"pixels are only 0 and 1 ({found.type}): 1 is taken for white")
    if bits == 8 or found.high == 0:
        dark = 0 < found.high < _DARK
        return Scale(
            float(limit), f"pixels reach only {found.high:.0f} of {limit}: if that is white, give white={found.high:.0f}" if dark else None
        )
    used = next(b for b in _BITS if found.high < 2**b)
    return Scale(float(2**used - 1), f"pixels are {found}, read as {used} bits: {2**used - 1} is white (white= says otherwise)")


def _of_floats(found: Range, units: Units) -> Scale:
    if found.whole and found.low >= 0 and BYTE / 2 < found.high <= BYTE and not units.beyond_one:
        return Scale(float(BYTE), f"pixels are {found}, all whole numbers, read as 0 to 255 (expected is 0 to 1)")
    if found.low >= -_OVERSHOOT and found.high <= 1 + _OVERSHOOT:
        dark = 0 < found.high < 1.5 / BYTE and found.low >= 0
        return Scale(None, f"pixels reach only {found.high:.2g} of 1: were they divided by 255 twice?" if dark else None)
    if units.prepared or units.beyond_one:
        return Scale(None, f"pixels are {found}, taken as they are (as mean and std ask)", scaled=False)
    raise RunError(
        f"{found.where}: pixels are {found}; expected 0 to 1. Divide them, or say which value is white (white=255), or give mean and std "
        "in their units (0 and 1 where they are normalised already)"
    )
