"""Copies of networks, also of those whose forward pass leaves activations on its modules."""

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from .errors import RunError

if TYPE_CHECKING:
    from torch import nn


def copied(model: "nn.Module") -> "nn.Module":
    """A deep copy of `model`. Tensors that remember how they were computed, which torch refuses to copy, come as plain values.

    RunError names the attribute of a module that cannot be copied (a lock, an open file).
    """
    try:
        return _copy(model)
    except Exception as error:  # any object may hang on a module
        where = next((f"{where} ({type(value).__name__})" for where, value in _attributes(model) if not _copies(value, model)), "it")
        raise RunError(
            f"cannot copy {type(model).__name__}: {where} does not let itself be copied: {' '.join(str(error).split())[:200]}; "
            "remove it from the module before"
        ) from error


def _copy(value: Any, memo: dict[int, Any] | None = None) -> Any:
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    class Values(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if func is not Tensor.__deepcopy__ or args[0].is_leaf:
                return func(*args, **(kwargs or {}))
            tensor, copies = args
            return copies.setdefault(id(tensor), tensor.detach().clone())

    with Values():
        return deepcopy(value, memo)


def _copies(value: Any, model: "nn.Module") -> bool:
    try:
        _copy(value, {id(module): module for module in model.modules()})
    except Exception:
        return False
    return True


def _attributes(model: "nn.Module") -> list[tuple[str, Any]]:
    found = [(f"{name}.{key}".lstrip("."), value) for name, module in model.named_modules() for key, value in vars(module).items()]
    return [(where, value) for where, value in found if not where.endswith("_modules")]
