"""What training code wraps around a network: several devices, compilation, averaged weights. The network itself is inside.

Classes are known by name, so that none of their packages is imported.
"""

import copy
from typing import TYPE_CHECKING

from .errors import UsageError
from .progress import Progress, Silent

if TYPE_CHECKING:
    from torch import nn

_INNER = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.optim.swa_utils.AveragedModel": "module",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
    "ema_pytorch.ema_pytorch.EMA": "ema_model",
    "lightning.fabric.wrappers._FabricModule": "_original_module",
}
"""Wrapper -> the attribute that holds the network. A forward of the user's own class may do more than call what it holds: none is here."""

_SHARDED = ("torch.distributed.fsdp", "torch.distributed._composable", "deepspeed")


def unwrapped(model: "nn.Module", progress: Progress = Silent()) -> "nn.Module":  # noqa: B008 - stateless
    """The network inside `model`'s wrappers, which a line of the log names; `model` itself where there are none."""
    names = []
    while (inner := _inner(model)) is not None:
        names.append(_name(model))
        model = inner
    if names:
        progress.log(f"the network is taken out of {' and '.join(names)}, which the result does not have")
    return model


def without_wrappers(model: "nn.Module", progress: Progress = Silent()) -> "nn.Module":  # noqa: B008 - stateless
    """`unwrapped`, and a copy without wrappers where they (also `module.compile()`) lie deeper inside."""
    model = unwrapped(model, progress)
    inside = {name: module for name, module in model.named_modules() if _inner(module) is not None}
    compiled = [name for name, module in model.named_modules() if getattr(module, "_compiled_call_impl", None) is not None]
    if not inside and not compiled:
        return model
    memo: dict[int, object] = {}
    for module in reversed(inside.values()):  # the innermost first; a copy then meets the network in the wrapper's place
        memo[id(module)] = copy.deepcopy(_inner(module), memo)
    what = [*(f"{_name(module)} at {name}" for name, module in inside.items()), *(f"compile() of {name or 'it'}" for name in compiled)]
    progress.log(f"the network is copied without {', '.join(what)}")
    return copy.deepcopy(model, memo)


def _inner(model: "nn.Module") -> "nn.Module | None":
    for kind in type(model).__mro__:
        attribute = _INNER.get(f"{kind.__module__}.{kind.__qualname__}")
        if attribute is not None:
            return getattr(model, attribute)
    return None


def _name(model: "nn.Module") -> str:
    return "torch.compile" if hasattr(model, "_orig_mod") else type(model).__name__


def check_network(model: object) -> None:
    """UsageError for what can't be worked on: no module, a scripted one, one without forward pass, weights in pieces."""
    from torch import jit, nn

    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise UsageError(f"the network is a {kind}, not a torch.nn.Module; give the module itself, with its weights loaded")
    if isinstance(model, jit.ScriptModule):
        raise UsageError("the network is a TorchScript module, whose code is fixed; give the torch.nn.Module that it was made from")
    if any(base.__module__.startswith(_SHARDED) for module in model.modules() for base in type(module).__mro__):
        raise UsageError(f"{kind} holds its weights in pieces on several processes; load a full state dict into the plain network")
    if type(model).forward is nn.Module.forward and "forward" not in vars(model):
        raise UsageError(f"{kind} has no forward pass; give the network that is called")
