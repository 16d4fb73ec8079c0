"""The form of what a JSON file holds: checked once, where the file is read, so that an edited one is named and not met deep inside.

A form is a type (bool is no number, an int is a float), `Within(type, low, high)` for a number between two others, a tuple of forms
of which one fits, `[form]` for a list of any length (`[form, form]` of two), `{str: form}` for a table with any keys,
`{"key": form, ...}` for one with at least these, or `Maybe(form)`: absent, null or that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import RunError

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table", list: "a list"}


@dataclass(frozen=True)
class Maybe:
    """A form that may be left out."""

    form: Any


@dataclass(frozen=True)
class Within:
    """A number of `kind` (int or float) from `low` to `high`."""

    kind: type
    low: float
    high: float


def require(value: Any, form: Any, where: str, remedy: str) -> None:
    """RunError for the first entry of `value` that is not of `form`: "WHERE: ENTRY is missing; REMEDY"."""
    for fault in _faults(value, form, ""):
        raise RunError(f"{where}: {fault}; {remedy}")


def _faults(value: Any, form: Any, place: str) -> Iterator[str]:
    """What is wrong in `value`, the entry at `place` (a.b[0].c)."""
    if isinstance(form, Maybe):
        if value is not None:
            yield from _faults(value, form.form, place)
    elif isinstance(form, Within):
        wrong = list(_faults(value, form.kind, place))
        yield from wrong
        if not wrong and not form.low <= value <= form.high:
            yield f"{place or 'it'} is {value!r:.80} and not from {form.low:g} to {form.high:g}"
    elif isinstance(form, tuple):
        if all(any(True for _ in _faults(value, choice, place)) for choice in form):
            yield f"{place} is {value!r:.80}"
    elif isinstance(form, type):
        if not isinstance(value, (int, float) if form is float else form) or (isinstance(value, bool) and form is not bool):
            yield f"{place or 'it'} is {value!r:.80} and not {_NAMES[form]}"
    elif isinstance(form, list):
        yield from _faults(value, list, place)
        if isinstance(value, list) and len(form) > 1 and len(form) != len(value):
            yield f"{place} has {len(value)} entries and not {len(form)}"
        for number, item in enumerate(value if isinstance(value, list) else ()):
            yield from _faults(item, form[0], f"{place}[{number}]")
    else:
        yield from _faults(value, dict, place)
        if isinstance(value, dict):
            yield from _table_faults(value, form, f"{place}." if place else "")


def _table_faults(value: dict[str, Any], form: dict[Any, Any], prefix: str) -> Iterator[str]:
    if str in form:
        for key, item in value.items():
            yield from _faults(item, form[str], f"{prefix}{key}")
        return
    for key, item in form.items():
        if key in value or isinstance(item, Maybe):
            yield from _faults(value.get(key), item, f"{prefix}{key}")
        else:
            yield f"{prefix}{key} is missing"
