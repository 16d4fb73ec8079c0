"""The arguments with which a network would take a checkpoint: looked for where one does not fit, so that the error can name them."""

import inspect
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .registry import TABLE, ModelSpec, Value, build, parameters_of
from .torchvision_models import PREFIX

_MOST = 64
_SECONDS = 5.0
"""Networks of one name that are built for the search (on the meta device one takes some 10 ms), and how long all of it may take."""


def fitting_arguments(spec: ModelSpec, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Value]] | None:
    """A name and those arguments, beside the ones in `spec`, that build a network of the names and shapes in `state`; None where none do.

    The network that was asked for comes first, then our others. Choices (`Literal`) are tried one by one. A whole number is scaled as
    widths of the network differ from those in the file: with 24 planes in the file where the network has 16, width=16 becomes 24.
    """
    wanted, start = _shapes(state), time.monotonic()
    names = [spec.name, *(name for name in TABLE if name != spec.name and spec.name in TABLE)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            given = spec.args if name == spec.name else {k: v for k, v in spec.args.items() if k in parameters_of(name)}
            for args in itertools.islice(_candidates(name, given, wanted), _MOST):
                if time.monotonic() - start > _SECONDS:
                    return None
                if _built(name, args) == wanted:
                    return name, {key: value for key, value in args.items() if given.get(key, _default(name, key)) != value}
    return None


def _candidates(name: str, given: Mapping[str, Value], wanted: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, Value]]:
    """Arguments to try: all choices, then for those that lead to the right names the whole numbers that the shapes suggest."""
    parameters = parameters_of(name)
    choices = {key: get_args(p.annotation) for key, p in parameters.items() if get_origin(p.annotation) is Literal}
    for chosen in itertools.product(*choices.values()):
        args = {**given, **dict(zip(choices, chosen, strict=True))}
        yield args
        built = _built(name, args)
        if built is None or built.keys() != wanted.keys():
            continue
        pairs = {(a, b) for key in built for a, b in zip(wanted[key], built[key], strict=False) if a != b and b}
        numbers: dict[str, list[Value]] = {}
        for key in parameters if not name.startswith(PREFIX) else ("num_classes",):
            value = args.get(key, _default(name, key))
            if type(value) is int:
                numbers[key] = sorted({value * a // b for a, b in pairs if value * a % b == 0 and value * a >= b})
        for count in range(1, len(numbers) + 1):
            for keys in itertools.combinations(numbers, count):
                for values in itertools.product(*(numbers[key] for key in keys)):
                    yield {**args, **dict(zip(keys, values, strict=True))}


def _default(name: str, key: str) -> Any:
    parameter = parameters_of(name).get(key)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _built(name: str, args: Mapping[str, Value]) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the network; None where it cannot be built so."""
    try:
        with torch.device("meta"), _Undrawn():
            return _shapes(build(ModelSpec(name=name, args=dict(args))).state_dict())
    except Exception:  # of the user's own factory, or of arguments that do not go together
        return None


class _Undrawn(TorchFunctionMode):
    """Nothing is drawn for initial weights: on the meta device the first draw alone takes seconds, for torch compiles its own rules."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in ("normal_", "uniform_", "erfinv_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}
