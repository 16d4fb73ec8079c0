"""Reconstruction, layer by layer in network order: inputs of the network as refitted so far, targets of the dense one, weights."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.calibrate.calls import filters_of, groups_of, multiplies
from fineprune.calibrate.convolutions import Skipped
from fineprune.calibrate.moments import COLUMNS
from fineprune.common.errors import RunError, UsageError
from fineprune.common.inputs import told
from fineprune.common.processes import joined

from ..bake import masked_layers
from ..layers import MaskedLayer
from ..prune import CalibrationRun
from .gram import Gram
from .inputs import Inputs
from .layers import kept, outputs_of, refittable
from .refit import refit, ridge_of
from .store import Store
from .stream import Stream
from .targets import Targets


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """What is read, and what is kept in memory.

    images: of the training set, a seeded choice. columns: samples of a layer's inputs for each weight of a filter, at most (positions are
    drawn where outputs are large). memory_bytes: of kept activations, beside one layer's matrices and the pass of one batch.
    """

    images: int = 512
    columns: int = COLUMNS
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("columns", 1), ("memory_bytes", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"reconstruct {name} is a whole number of at least {least}, got {value!r}")


def reconstruct_config(asked: bool | Mapping[str, Any] | None, *, default: bool) -> ReconstructConfig | None:
    """Settings from yes, no, a table of them, or None: the default. UsageError for others."""
    if isinstance(asked, Mapping):
        accepted = [field.name for field in fields(ReconstructConfig)]
        if unknown := sorted(set(asked) - set(accepted)):
            raise UsageError(f"unknown reconstruct setting {unknown[0]!r}; known are {', '.join(accepted)}")
        return ReconstructConfig(**asked)
    if not isinstance(asked, bool | None):
        raise UsageError(f"reconstruct is true, false or a table of settings, got {asked!r:.80}")
    return ReconstructConfig() if asked or (asked is None and default) else None


@dataclass(frozen=True, kw_only=True)
class Reconstructed:
    """The layers that were refitted, those that keep their weights and why, the images that were read, and the seconds that it took."""

    layers: list[str]
    left: list[Skipped] = field(default_factory=list)
    images: int
    seconds: float


def reconstruct(dense: nn.Module, masked: nn.Module, run: CalibrationRun, config: ReconstructConfig | None = None) -> Reconstructed:
    """Refit the weights of `masked`, in place, so that its layers answer on the samples of `run` as those of `dense` do.

    No labels are read. Weights that masks drop become zero. With `run.folder`, layers that are finished are kept there, and an interrupted
    run goes on after them, to the same weights. In the processes of torchrun each takes every n-th batch.
    RunError for an empty source, or inputs that are not finite.
    """
    begun, config = time.monotonic(), config or ReconstructConfig()
    for model in (dense, masked):
        model.to(run.device)
    with joined() as group:
        progress = group.speaker(run.progress)
        stream = Stream(run, config.images, group)
        convs = dict(masked_layers(masked))
        order, left = refittable(masked, outputs_of(dense, stream.few(), convs))
        layers = [convs[shared.name] for shared in order]
        settings = {**asdict(config), "seed": run.config.seed, "data": run.config.data, "input_shape": told(run.input_shape)}
        store = Store(run.folder and run.folder / "reconstruction", dense, masked, settings)
        done = group.on_first(lambda: store.load([{key: tuple(value.shape) for key, value in state_of(layer).items()} for layer in layers]))
        for layer, state in zip(layers, done, strict=False):
            set_state(layer, state)
        targets = Targets(dense, order, stream, config.columns, config.memory_bytes / 2)
        inputs = Inputs(masked, order, stream, config.memory_bytes / 2)
        rest = range(len(done), len(order))
        for place in progress(rest, total=len(order), description="reconstructing", start=len(done)):
            gram = inputs.gram(place, targets.of(place)).total(group)
            set_state(layers[place], group.on_first(partial(refitted, order[place].name, layers[place], gram)))
            group.on_first(partial(store.save, place, state_of(layers[place])))
    names = [name for shared in order for name in shared.names]
    return Reconstructed(layers=names, left=left, images=stream.images, seconds=time.monotonic() - begun)


def refitted(name: str, layer: MaskedLayer, gram: Gram) -> dict[str, Tensor]:
    """Filters [F,C/groups,kh,kw] and bias, of H [groups,d,d] and G [groups,d,F/groups]."""
    if not (gram.inputs.isfinite().all() and gram.products.isfinite().all()):
        raise RunError(f"{name} has inputs or outputs that are NaN or infinite; check the checkpoint and the normalisation of the data")
    now, groups = state_of(layer), groups_of(layer)
    filters, bias = now["weight"], now.get("bias")
    before = filters.detach().cpu().double().reshape(groups, -1, filters[0].numel())
    stay = kept(layer).cpu().reshape(before.shape)
    if bias is not None:
        before = torch.cat([before, bias.detach().cpu().double().reshape(groups, -1, 1)], 2)
        stay = torch.cat([stay, torch.ones_like(stay[:, :, :1])], 2)
    found = torch.stack(
        [
            refit(inputs, products, old, keep, ridge_of(inputs, bias=bias is not None))
            for inputs, products, old, keep in zip(gram.inputs, gram.products, before, stay, strict=True)
        ]
    ).float()
    weight = found[:, :, : filters[0].numel()].reshape(filters.shape).contiguous()
    return {"weight": weight} if bias is None else {"weight": weight, "bias": found[:, :, -1].flatten().contiguous()}


def state_of(layer: Any) -> dict[str, Tensor]:
    """Filters [F,C/groups,kh,kw] of the parameter, and the bias."""
    bias = {} if layer.bias is None else {"bias": layer.bias}
    return {"weight": filters_of(layer, layer.own_weight), **bias}


def set_state(layer: Any, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        layer.own_weight.copy_(multiplies(layer).weight(state["weight"], groups_of(layer)))
        if layer.bias is not None:
            layer.bias.copy_(state["bias"])
