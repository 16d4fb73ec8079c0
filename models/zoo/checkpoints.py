"""Loading weights of any origin into a model, without running anything that a file contains."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fineprune.common.errors import RunError, UsageError
from fineprune.ops.mask_facts import is_mask

from .fitting import fitting_arguments
from .registry import ModelSpec
from .state_dicts import State, checked, fitted, part, unwrapped, versions
from .weight_files import read_content


def load_checkpoint(model: nn.Module, path: Path | str, spec: ModelSpec | None = None) -> tuple[str, ...]:
    """Load the weights in `path` into `model`, in place; returns a line for each thing that a user might have meant otherwise.

    `path` holds a state dict as written by `torch.save` or safetensors, also inside the dict of a training (under `state_dict`,
    `model_state_dict`, `model`, `net`, ..., or averaged weights alone). What wrappers (DataParallel, torch.compile, Lightning, averages
    of weights) put before names is dropped, weights that torch.nn.utils.prune split are multiplied with their masks, and counters may be
    missing or too many. Nothing is unpickled but tensors and plain containers. spec: the name and arguments of `model`, for advice.

    Raises UsageError where there is no such file, or for a model whose weights cannot be changed; RunError where it is something else
    than a checkpoint (named), truncated, holds other objects or no floating-point numbers, NaN or infinite weights, or does not fit the
    model, which is then left as it was.
    """
    path = Path(path)
    notes: list[str] = []
    own = model.state_dict()
    _check_network(own)
    state = fitted(unwrapped(read_content(path), path, notes), own, path, notes)
    masks = [name for name in state if is_mask(name) and name not in own]
    if masks:
        raise RunError(
            f"{path} is of a network with masks ({masks[0]}), which the network as it was before does not have; "
            "name the bundle instead, or in Python load the state into fineprune.load(BUNDLE)"
        )
    for name in [name for name in state if name.endswith("num_batches_tracked") and name not in own]:
        del state[name]
    wrong = [name for name, value in state.items() if name in own and not _same_shape(value, own[name])]
    fitting: State = OrderedDict((name, value) for name, value in state.items() if name not in wrong)
    fitting._metadata = versions(state, own)  # type: ignore[attr-defined]
    for name, value in fitting.items():
        if name in own:
            checked(name, value, own[name], path)
    before = {name: value.clone() for name, value in own.items() if isinstance(value, Tensor) and not is_lazy(value)}
    try:
        # The rest is compared by torch itself, since some modules translate the names of older releases while loading.
        result = model.load_state_dict(fitting, strict=False)
    except Exception as error:  # of torch, or of a module's own way of loading
        _put_back(model, before)
        raise RunError(f"{path} does not fit this network: {' '.join(str(error).split()) or type(error).__name__}") from error
    missing = [k for k in result.missing_keys if k not in state and not k.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys or wrong:
        _put_back(model, before)
        shapes = [f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}" for name in wrong]
        parts = (part("missing", missing), part("unexpected", result.unexpected_keys), part("wrongly shaped", shapes))
        raise RunError(f"{path} does not fit this network: {'; '.join(p for p in parts if p)}; {_remedy(spec, state)}")
    return tuple(notes)


def _check_network(own: Mapping[str, Any]) -> None:
    """UsageError for a network that no weights can be copied into."""
    for name, value in own.items():
        if is_lazy(value):
            continue
        if not isinstance(value, Tensor) and not name.endswith("_extra_state"):
            raise UsageError(f"{name} of the network is no tensor (it is quantized); load the weights into the float network")
        if isinstance(value, Tensor) and value.is_meta:
            raise UsageError(f"{name} of the network has no values (it is on the device meta); build the network on the CPU")
        if isinstance(value, Tensor) and value.is_inference():
            raise UsageError(f"{name} of the network was made under torch.inference_mode() and cannot be changed; build it outside of it")


def _same_shape(value: Tensor, own: Tensor) -> bool:
    return is_lazy(own) or value.shape == own.shape


def _put_back(model: nn.Module, before: State) -> None:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in before and value.shape == before[name].shape:
                value.copy_(before[name])


def _remedy(spec: ModelSpec | None, state: State) -> str:
    found = fitting_arguments(spec, state) if spec is not None else None
    if found is None:
        return "build the model with the arguments that it was trained with"
    name, changes = found
    arguments = " ".join(f"--model-arg {key}={value}" for key, value in changes.items())
    named = "" if spec is not None and name == spec.name else f"--model {name}"
    return f"it fits {name} with other arguments; give {' '.join(filter(None, (named, arguments)))}"
