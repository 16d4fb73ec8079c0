"""From what a checkpoint holds to the names and tensors of one network: wrappers, averages, prefixes, parametrizations, counters.

Whatever is left out on the way is said: every function adds a line to `notes` for what a user might have meant otherwise.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fineprune.common.errors import RunError

State = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "network", "weights", "params")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "ema_model", "params_ema", "swa_state_dict")
_COUNTERS = {"num_batches_tracked", "n_averaged", "num_updates", "total_ops", "total_params", "epoch", "step", "global_step"}
"""Last parts of names that hold no weights: of BatchNorm, of averages of weights, of what counts operations (thop), of training."""
_INSERTED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that DataParallel, torch.compile and their like insert."""
_DEPTH = 4
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 3


def unwrapped(content: Any, path: Path, notes: list[str]) -> State:
    """The state dict in a checkpoint, its metadata kept; RunError where there is none, or entries that are no tensors."""
    while isinstance(content, Mapping):
        key = _wrapper(content)
        if key is None:
            break
        averages = [other for other in _AVERAGES if other != key and isinstance(content.get(other), Mapping)]
        if averages:
            notes.append(f"{path}: the weights under {key!r} are taken; to use the averaged ones under {averages[0]!r}, save those alone")
        elif key in _AVERAGES:
            notes.append(f"{path}: the averaged weights under {key!r} are taken, there are no others")
        content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        keys = ", ".join(f"{key!r:.40}" for key in list(content)[:5] if isinstance(key, str)) if isinstance(content, Mapping) else ""
        held = f"a dict with {keys or 'nothing'}" if isinstance(content, Mapping) else type(content).__name__
        raise RunError(f"{path} holds no state dict but {held}; save model.state_dict(), plainly or under the key 'state_dict'")
    state: State = OrderedDict((k, v) for k, v in content.items() if isinstance(v, Tensor) and isinstance(k, str))
    rest = [str(key) for key, value in content.items() if key not in state and isinstance(value, int | float | str | None)]
    odd = [str(key) for key in content if key not in state and str(key) not in rest]
    if odd:
        raise RunError(f"{path}: {part('not tensors', odd)}; save model.state_dict() alone or under the key 'state_dict'")
    if rest:
        notes.append(f"{path}: {part('beside the weights and left out', rest)}")
    state._metadata = getattr(content, "_metadata", {})  # type: ignore[attr-defined]
    return state


def _wrapper(content: Mapping[Any, Any]) -> str | None:
    """The key under which the weights are: of the usual names, else the only one that holds a state dict."""
    known = [key for key in (*_WRAPPERS, *_AVERAGES) if isinstance(content.get(key), Mapping)]
    if known or any(isinstance(value, Tensor) for value in content.values()):
        return next(iter(known), None)
    others = [key for key, value in content.items() if isinstance(value, Mapping) and value and isinstance(key, str)]
    holders = [key for key in others if all(isinstance(item, Tensor) for item in content[key].values())]
    return holders[0] if len(holders) == 1 else None


def fitted(state: State, own: Mapping[str, Tensor], path: Path, notes: list[str]) -> State:
    """`state` under the names that the network has, where a prefix or an insertion of a wrapper is all that differs.

    own: the network's state dict. Where nothing fits, the state dict as it is, without a wrapper's insertions: the caller names what
    does not fit. RunError where several networks in the file fit, and where a parametrization is not resolved.
    """
    state = _without_counters(_multiplied(state, own), own)
    if _fits(state, own):
        return state
    plain = _renamed(state, {name: _plain(name) for name in state})
    if _fits(plain, own):
        return plain
    for names in (state, plain):
        choices = {prefix: _part(names, prefix) for prefix in _prefixes(names)}
        fitting = {prefix: choice for prefix, choice in choices.items() if _fits(choice, own)}
        if fitting:
            break
    named = {prefix: choice for prefix, choice in fitting.items() if "ema" not in prefix.lower()} or fitting
    if len(named) > 1:
        raise RunError(f"{path} holds several networks that fit ({', '.join(named)}); save the state_dict() of the one that is meant")
    for prefix, choice in named.items():
        rest = [name for name in plain if not name.startswith(prefix)]
        if rest:
            notes.append(f"{path}: the weights under {prefix!r} are taken; {part('left out', rest)}")
        return choice
    for prefix in _prefixes(list(own)[:1]):
        choice = _renamed(plain, {name: prefix + name for name in plain})
        if _fits(choice, own):
            return choice
    _refuse_parametrizations(state, own, path)
    return max((plain, *choices.values()), key=lambda choice: len(choice.keys() & own.keys()))


def versions(state: State, own: Mapping[str, Tensor]) -> Any:
    """The metadata to load by: the file's, else, where it has all names of the network, the network's own (safetensors keeps none)."""
    return getattr(state, "_metadata", None) or (getattr(own, "_metadata", {}) if _fits(state, own) else {})


def _fits(state: State, own: Mapping[str, Tensor]) -> bool:
    """Whether names are those of the network (counters apart); a name in another shape is a matter of the network's arguments."""
    return set(_weights(state)) == set(_weights(own))


def _weights(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if not name.endswith("num_batches_tracked"))


def _plain(name: str) -> str:
    return ".".join(piece for piece in name.split(".") if piece not in _INSERTED)


def _prefixes(names: Iterable[str]) -> list[str]:
    """What names begin with, up to a dot: the shortest first, and no deeper than wrappers go."""
    pieces = (name.split(".", _DEPTH)[:-1] for name in names)
    return sorted({".".join(parts[: count + 1]) + "." for parts in pieces for count in range(len(parts))})


def _part(state: State, prefix: str) -> State:
    return _renamed(state, {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)})


def _renamed(state: State, names: Mapping[str, str]) -> State:
    """The entries of `names` under their new names, the metadata of modules alike."""
    renamed: State = OrderedDict((new, state[old]) for old, new in names.items())
    if len(renamed) < len(names):  # two became one
        return state
    modules = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in names.items()}
    metadata = getattr(state, "_metadata", {})
    renamed._metadata = {modules[name]: facts for name, facts in metadata.items() if name in modules}  # type: ignore[attr-defined]
    return renamed


def _multiplied(state: State, own: Mapping[str, Tensor]) -> State:
    """`NAME_orig` times `NAME_mask` of torch.nn.utils.prune as NAME, where the network itself is not pruned so."""
    pairs = {name: name.removesuffix("_orig") for name in state if name.endswith("_orig") and name not in own}
    for original, name in pairs.items():
        factors = (state[original], state.get(f"{name}_mask", torch.empty(0)))
        sound = all(factor.layout == torch.strided and factor.dtype in _FLOATS and factor.is_contiguous() for factor in factors)
        if sound and factors[0].shape == factors[1].shape:
            del state[original], state[f"{name}_mask"]
            state[name] = factors[0] * factors[1]
    return state


def _without_counters(state: State, own: Mapping[str, Tensor]) -> State:
    """Without what counts something and is not the network's; a counter is one number."""
    for name in [name for name, value in state.items() if name.rpartition(".")[2] in _COUNTERS and value.numel() == 1]:
        if name not in own and not name.endswith("num_batches_tracked"):
            del state[name]
    return state


def _refuse_parametrizations(state: State, own: Mapping[str, Tensor], path: Path) -> None:
    """A weight that is stored as the factors it is computed from is not guessed."""
    ends = {"weight_g": "weight_norm", "weight_u": "spectral_norm", "weight_orig": "torch.nn.utils.prune"}
    for name in state:
        if name in own:
            continue
        module, _, last = name.rpartition(".")
        kind = "torch.nn.utils.parametrize" if ".parametrizations." in f".{name}" else ends.get(last)
        if kind is not None:
            remove = {"torch.nn.utils.parametrize": "parametrize.remove_parametrizations", "torch.nn.utils.prune": "prune.remove"}
            raise RunError(
                f"{path} holds {name}: the weights of {module or 'the network'} are computed by {kind}; call torch.nn.utils."
                f"{remove.get(kind, 'remove_' + kind)} on the trained network before its state_dict() is saved"
            )


def part(what: str, items: list[str]) -> str:
    """`3 missing (a, b and 1 more)`, or nothing."""
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{more})"


def checked(name: str, value: Tensor, own: Tensor, path: Path) -> None:
    """RunError where `value`, of the shape of the network's own tensor, holds no numbers that can take its place."""
    odd = "sparse" if value.layout != torch.strided else "quantized" if value.is_quantized else ""
    if odd or value.is_meta or value.is_nested:
        what = f"is a {odd} tensor" if odd else "has no values (it was saved from the meta device)"
        raise RunError(f"{path}: {name} {what}; save the state_dict() of the float network with dense tensors")
    if value.is_complex() != own.is_complex() or (own.is_floating_point() and value.dtype not in _FLOATS):
        kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (value, own)]
        remedy = "save real weights" if value.is_complex() else "use the checkpoint from before the network was quantized"
        raise RunError(f"{path}: {name} holds {kinds[0]} numbers where the network has {kinds[1]}; {remedy}")
    if own.is_floating_point():
        wrong = int((~value.to(own.dtype).isfinite()).sum())
        if wrong:
            raise RunError(
                f"{path}: {name} holds {wrong} NaN or infinite values; the training that wrote it diverged, use an earlier checkpoint"
            )
