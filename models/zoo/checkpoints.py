"""Loading weights of any origin into a model, without running anything that a file contains."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import RunError, UsageError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_SHOWN = 3


def load_checkpoint(model: nn.Module, path: Path | str) -> None:
    """Load the weights in `path` into `model`, in place.

    `path` holds a state dict, or a dict with one under `state_dict`, `model_state_dict`, `model` or `net`, as written by
    `torch.save`, or is a safetensors file; a `module.` prefix is dropped. Missing `num_batches_tracked` counters (files of
    torch < 0.4.1) are let pass. Nothing is unpickled but tensors and plain containers.

    Raises UsageError where there is no such file; RunError where it is truncated, not a checkpoint, holds other objects,
    holds NaN or infinite weights, or does not fit the model, which is then left as it was.
    """
    path = Path(path)
    state = _without_prefix(read_state(path), model)
    _refuse_nonfinite(state, path)
    own = model.state_dict()
    wrong = [f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}" for k, v in state.items() if k in own and v.shape != own[k].shape]
    before = {key: value.clone() for key, value in own.items()}
    try:
        # The rest is compared by torch itself, since some modules translate the names of older releases while loading.
        fitting = {k: v for k, v in state.items() if k not in own or v.shape == own[k].shape}
        result = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        model.load_state_dict(before)
        raise RunError(f"{path} does not fit this network: {' '.join(str(error).split())}") from error
    missing = [k for k in result.missing_keys if k not in state and not k.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys or wrong:
        model.load_state_dict(before)
        parts = (_part("missing", missing), _part("unexpected", result.unexpected_keys), _part("wrongly shaped", wrong))
        remedy = "build the model with the arguments that it was trained with"
        raise RunError(f"{path} does not fit this network: {'; '.join(p for p in parts if p)}; {remedy}")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, unwrapped; errors as in `load_checkpoint`."""
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"checkpoint {path} {reason}; give the path of a weights file")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        held = (
            f"a dict with {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise RunError(f"{path} holds no state dict but {held}; save model.state_dict(), plainly or under the key 'state_dict'")
    odd = [str(key) for key, value in content.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if odd:
        raise RunError(f"{path}: {_part('not tensors', odd)}; save model.state_dict() alone or under the key 'state_dict'")
    return dict(content)


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    return head[8:9] == b"{"  # eight bytes of length, then JSON


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is truncated or not a safetensors file ({' '.join(str(error).split())}); copy it again") from error


def _read_torch(path: Path) -> Any:
    broken = RunError(f"{path} is truncated or not a checkpoint; copy or download it again")
    try:
        with path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise RunError(
                f"{path} holds objects other than weights ({found[1]}), which are not loaded because they can run code; "
                "load it where you trust it and save model.state_dict() alone"
            ) from error
        raise broken from error
    except Exception as error:  # a broken file ends in almost any of the unpickler's and the archive reader's errors
        raise broken from error


def _without_prefix(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    own = list(model.state_dict())
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in state) and not all(key.startswith(prefix) for key in own):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _refuse_nonfinite(state: Mapping[str, Tensor], path: Path) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise RunError(
                f"{path}: {name} holds {count} NaN or infinite values; the training that wrote it diverged, use an earlier checkpoint"
            )


def _part(what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{more})"
