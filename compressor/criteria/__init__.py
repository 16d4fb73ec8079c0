"""The pruning methods, one file each. Every module in this folder that names an object in `METHODS` is known everywhere by its name."""

from importlib import import_module
from pkgutil import iter_modules

from ..criterion import Criterion


def _found() -> dict[tuple[str, str], Criterion]:
    """(kind of mask, name) -> method, from the files."""
    methods: dict[tuple[str, str], Criterion] = {}
    for module in iter_modules(__path__):
        for method in import_module(f"{__name__}.{module.name}").METHODS:
            if (method.unit.kind, method.name) in methods:
                raise ValueError(f"there are two methods {method.name!r} that make {method.unit.kind} masks")
            methods[method.unit.kind, method.name] = method
    return dict(sorted(methods.items()))


_METHODS = _found()


def criteria(kind: str | None = None) -> list[Criterion]:
    """All methods by name, or those that make masks of one kind ("ffp", "fwp")."""
    return [method for (of, _), method in _METHODS.items() if kind in (None, of)]


def criterion(kind: str, name: object) -> Criterion | None:
    """The method of that name that makes masks of that kind, if there is one."""
    return _METHODS.get((kind, name)) if isinstance(name, str) else None
