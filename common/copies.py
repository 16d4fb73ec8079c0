"""Copies of networks: also of those whose forward pass leaves activations on its modules, and in float32 whatever they were trained in."""

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from .errors import RunError, UsageError
from .progress import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn


def working_copy(model: "nn.Module", progress: Progress) -> "nn.Module":
    """A float32 copy of `model` to calibrate, mask and train: the caller's network stays as it is, whatever happens.

    A line of the log says what was converted (half, bfloat16 and double weights). UsageError names weights that cannot be worked on:
    those without values, complex, quantized or spread over devices.
    """
    import torch

    for name, module in model.named_modules():
        kind = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(f"{name or 'the network'} is scripted (torch.jit), which fixes its code; give the module it was made from")
        if kind.__module__.startswith("torch.ao.nn") and any(part in kind.__module__ for part in (".quantized", ".qat")):
            raise UsageError(
                f"{name} ({kind.__name__}) is quantized; give the float network that it was made from, and quantize the exported file"
            )
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if trouble := _trouble(value):
            raise UsageError(f"{name} {trouble}")
    copy = copied(model)
    others = sorted({str(p.dtype).removeprefix("torch.") for p in copy.parameters() if p.is_floating_point() and p.dtype != torch.float32})
    if others:
        progress.log(f"the network's {' and '.join(others)} weights become float32, in which the work is done and the result is kept")
        copy.float()
    return copy


def _trouble(value: "Tensor") -> str | None:
    """What makes a parameter or buffer nothing to work on."""
    from torch import Tensor, nn
    from torch.nn.parameter import is_lazy

    if is_lazy(value):
        return "has no shape yet (a lazy module); call the network once on a sample, then load its checkpoint"
    if value.is_meta:
        return "has no values (it is on the device meta); load a checkpoint, with assign=True, before"
    if value.is_complex():
        return f"is complex ({value.dtype}); only real networks can be compressed"
    if value.is_quantized or type(value.data) not in (Tensor, nn.Parameter):
        return f"is no plain tensor ({type(value.data).__name__}: quantized or spread over devices); load plain weights before"
    return None


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
