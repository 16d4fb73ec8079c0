"""What each level of each layer costs a network whose other layers stay as they are.

    e[l][s] = mean over samples x of  d( f(x), f_ls(x) )

f: the network given; f_ls: the same with layer l at level s, its kept weights refitted on other samples (`reconstruct/refit`), as a prune
of that layer alone and a reconstruction would leave it; d: whatever `judge` makes of the outputs. The inputs of l are those of f at every
level: one pass gives the sums that all its refits need (one for each ratio of blocks), and answers are computed from the last module on
before l whose inputs are kept (`reconstruct/passes`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.calibrate.convolutions import ConvSite
from fineprune.common.inputs import Inputs as Batch
from fineprune.common.inputs import mapped
from fineprune.common.processes import Group

from ..bake import bake, masked_layers, masks_of, remask
from ..masks import BLOCKS, KINDS, WEIGHTS
from ..prune import CalibrationRun
from ..reconstruct.gram import Gram
from ..reconstruct.inputs import Inputs
from ..reconstruct.layers import Shared, outputs_of, refittable
from ..reconstruct.passes import Starts, forward, noting
from ..reconstruct.run import ReconstructConfig, refitted, set_state, state_of
from ..reconstruct.stream import Stream
from ..reconstruct.targets import Targets
from ..selection import left
from .levels import Level

Judge = Callable[[Iterator[tuple[Any, Any]]], Mapping[str, float]]
"""Of each batch, in their order: outputs and those of the network given -> figures by name, of all samples."""
LevelMasks = Mapping[Level, Mapping[str, Mapping[str, Tensor]]]
"""Masks by level, kind and layer."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """One layer at one level: the fraction of its multiply-adds that is kept, and the network's figures by name."""

    layer: str
    level: Level
    kept: float
    figures: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"layer": self.layer, "level": self.level.to_json(), "kept": self.kept, **self.figures}


def sensitivities(
    model: nn.Module,
    masks: LevelMasks,
    sites: Sequence[ConvSite],
    run: CalibrationRun,
    batches: Sequence[Batch],
    judge: Judge,
    *,
    refit: ReconstructConfig | None = None,
    done: frozenset[tuple[str, Level]] = frozenset(),
) -> Iterator[Sensitivity]:
    """Figures of each layer that `masks` drop something of, at each level, in the order of `sites`; those `done` are left out.

    batches: samples that figures are measured on. refit: settings of the refit on samples of `run`; None: kept weights stay.
    """
    masked = [site for site in sites if any(site.name in of_kind for of in masks.values() for of_kind in of.values())]
    trials = _Trials(model, masked, run, refit)
    suffix = _Suffix(trials.carrier, trials.inputs.starts, [batch.to(run.device) for batch in batches], trials.memory)
    todo = [site for site in masked if any((site.name, level) not in done for level in masks)]
    for site in run.progress(todo, total=len(todo), description="measuring what layers cost"):
        trials.restore()
        suffix.move(site.name)
        for level in sorted(masks):
            if (site.name, level) in done:
                continue
            of_layer = {kind.name: {site.name: one} for kind in KINDS if (one := masks[level][kind.name].get(site.name)) is not None}
            trials.put_on(site.name, of_layer)
            figures = judge(zip(suffix.outputs(), suffix.exact, strict=True))
            yield Sensitivity(layer=site.name, level=level, kept=left(site, of_layer) / site.macs, figures=figures)


class _Trials:
    """A copy of `model` one layer of which gets masks, and weights that are refitted under them."""

    def __init__(self, model: nn.Module, sites: Sequence[ConvSite], run: CalibrationRun, refit: ReconstructConfig | None) -> None:
        ones = {site.name: torch.ones(site.weight_shape, dtype=torch.bool) for site in sites}
        self.carrier = bake(model.to(run.device), {WEIGHTS.name: ones}, input_shape=run.input_shape)
        self._carried, self._refit = masks_of(model), refit
        config = refit or ReconstructConfig()
        self.memory = config.memory_bytes / 2
        stream = Stream(run, config.images, Group())
        self._layers = dict(masked_layers(self.carrier))
        order, _ = refittable(self.carrier, outputs_of(model, stream.few(), self._layers))
        alone = [shared for shared in order if len(shared.names) == 1]
        self._place = {shared.name: place for place, shared in enumerate(alone)}
        every = alone + [_only_seen(name) for name in ones if name not in self._place]
        self._targets = Targets(model, alone, stream, config.columns, self.memory)
        self.inputs = Inputs(self.carrier, every, stream, self.memory)
        self._before: tuple[str, dict[str, Tensor]] | None = None
        self._gram: tuple[str, Tensor | None, Gram] | None = None

    def restore(self) -> None:
        """The network as it was given."""
        remask(self.carrier, self._carried)
        if self._before is not None:
            name, state = self._before
            set_state(self._layers[name], state)
        self._before = self._gram = None

    def put_on(self, name: str, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Give the layer `name` these masks, and the weights that fit them."""
        layer = self._layers[name]
        if self._before is None:
            self._before = name, {key: value.detach().clone() for key, value in state_of(layer).items()}
        set_state(layer, self._before[1])
        blocks = masks.get(BLOCKS.name, {}).get(name)
        if self._refit is None or name not in self._place:
            self._mask(masks)
            return
        if self._gram is None or not _equal(self._gram[1], blocks):
            self._mask({BLOCKS.name: {} if blocks is None else {name: blocks}})
            place = self._place[name]
            self._gram = name, blocks, self.inputs.gram(place, self._targets.of(place))
        self._mask(masks)
        set_state(layer, refitted(name, layer, self._gram[2]))

    def _mask(self, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        remask(self.carrier, {kind.name: {**self._carried[kind.name], **masks.get(kind.name, {})} for kind in KINDS})


def _only_seen(name: str) -> Shared:
    """A layer that is not refitted, where passes may start before."""
    return Shared(names=(name,), outputs=[], inputs=0)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


class _Suffix:
    """Outputs of `model` for the same batches, again and again, each pass from a module on whose inputs are kept. memory: for them."""

    def __init__(self, model: nn.Module, starts: Starts, batches: Sequence[Batch], memory: float) -> None:
        self._model, self._starts, self._batches = model, starts, batches
        self._largest = memory / (4 * max(1, sum(len(batch) for batch in batches)))
        self._start: str | None = None
        self._kept: list[Tensor] = []
        self.exact = [self._answer(number) for number in range(len(batches))]

    def move(self, layer: str) -> None:
        """Start as late before `layer` as can be; the network is as it was given."""
        after = self._starts.before(layer, self._largest)
        if after is None or after == self._start:
            return
        noted: list[Tensor] = []
        with noting({after: self._model.get_submodule(after)}, lambda _, args: noted.append(args[0].clone())):
            for number in range(len(self._batches)):
                self._answer(number)
        self._start, self._kept = after, noted

    def outputs(self) -> Iterator[Any]:
        """Of each batch."""
        yield from map(self._answer, range(len(self._batches)))

    def _answer(self, number: int) -> Any:
        if self._start is None:
            found = forward(self._model, self._batches[number])
        else:
            found = forward(self._model, *self._starts.to(self._start, self._kept[number]))
        return mapped(found, lambda tensor: tensor.clone())
