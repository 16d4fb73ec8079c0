"""A calibration pass: stream samples through a network in eval mode and add up what a `Measure` collects.

Weights are frozen, augmentation is off, memory does not grow with the data set.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import RunError, UsageError
from fineprune.common.inputs import Inputs, Shape, answer, floats, told, tracked
from fineprune.common.processes import Group, joined
from fineprune.common.progress import Progress, Silent
from fineprune.common.seeds import check_seed

from .calls import acting
from .convolutions import LAYER_TYPES, ConvSite, evaluating, find_convolutions
from .layers import Collector
from .measures import Measure
from .statistics import FACTS, Statistics, check_fields, fingerprint, masks_by_layer
from .strides import answering_as_nchw, wants_nchw


class Samples(NamedTuple):
    """One batch: images[N,C,H,W] float or a `Structured`, labels[N] int64, indices[N] int64 (each sample's place in the data set)."""

    images: Inputs
    labels: Tensor
    indices: Tensor


class Source(Protocol):
    """Where samples come from; every split of `fineprune.models.data` is one.

    `summed_loss(outputs, labels, samples)`, where there is one, is the sum of the samples' losses; else they are cross-entropies.
    """

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, *, indices: Tensor | None = None) -> Iterator[Any]:
        """Yield batches with fields images, labels and indices, in the order of `indices`."""
        ...


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How samples are streamed. `samples` None means all of them; otherwise a seeded random choice.

    `data` names the data set: statistics of another one are neither added nor resumed.
    """

    samples: int | None = None
    data: str = ""
    batch_size: int = 128
    seed: int = 0
    checkpoint_every_s: float = 30.0
    layer_types: tuple[str, ...] = LAYER_TYPES
    """As `find_convolutions` has them."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples must be at least 1, got {self.samples}")
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}")
        check_seed(self.seed)


def collect(
    model: nn.Module,
    source: Source,
    measure: Measure,
    *,
    input_shape: Shape,
    config: CalibrationConfig | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Measure every maskable layer of `model`, of the types that `config` names, on the samples of `source`.

    The network may carry masks: it is measured as it computes, under them. With `checkpoint` (a folder) a killed pass goes on from
    there. Raises RunError on non-finite activations or an empty source, UsageError where there is nothing to measure.

    In the processes of `torchrun`, or of a process group that the caller has initialised, each calls this, takes every n-th batch and gets
    the sums of all: the batches are those of one process, so that counts are equal and other sums differ by the order of addition. The
    first process writes the checkpoint.
    """
    config, progress = config or CalibrationConfig(), progress or Silent()
    sites, _ = find_convolutions(model, input_shape, config.layer_types)
    if len(source) == 0:
        raise RunError("the calibration set is empty; name a data set with training samples")
    if not sites:
        raise UsageError("the network has no convolution that can carry masks")
    with joined() as group:
        return _collect(model, source, measure, sites, _Pass(input_shape, config, device, checkpoint, group.speaker(progress), group))


class _Pass(NamedTuple):
    """How one pass is made."""

    input_shape: Shape
    config: CalibrationConfig
    device: torch.device | str
    checkpoint: Path | None
    progress: Progress
    group: Group


def _collect(model: nn.Module, source: Source, measure: Measure, sites: Sequence[ConvSite], how: _Pass) -> Statistics:
    config, checkpoint, group = how.config, how.checkpoint, how.group
    stream_settings = {k: v for k, v in asdict(config).items() if k in ("samples", "seed", "data")}
    network = fingerprint(model, masks_by_layer(model, (site.name for site in sites)))
    settings = {**measure.settings(sites), **stream_settings, "input_shape": told(how.input_shape), "network": network}
    order = sample_order(len(source), config)
    collectors = measure.collectors(model, sites, config.seed, len(order))
    saved = group.on_first(lambda: _saved(checkpoint, measure.kind, settings, collectors))
    done = 0 if saved is None else saved.samples
    if saved is not None and group.first:
        for name, collector in collectors.items():
            collector.restore(saved.layers[name])

    def snapshot(samples: int) -> Statistics:
        return Statistics(kind=measure.kind, settings=settings, samples=samples, layers={name: c.sums() for name, c in collectors.items()})

    def save(state: Statistics) -> Statistics:
        """The sums of all processes, kept where there is a place for them."""
        total = state.total(group)
        if checkpoint is not None:
            group.on_first(lambda: total.save(checkpoint))
        return total

    state = snapshot(done)
    if done == len(order):
        return state.total(group)
    chunks = order[done:].split(config.batch_size)
    first, rounds, own = done // config.batch_size // group.size, -(-len(chunks) // group.size), chunks[group.rank :: group.size]
    last_saved = time.monotonic()
    try:
        with _measured(model, collectors, how.input_shape, how.device):
            batches = source.batches(config.batch_size, indices=torch.cat(own)) if own else ()
            stream = chain(batches, [None] * (rounds - len(own)))  # the last round may have fewer batches than there are processes
            shown = how.progress(stream, total=first + rounds, description=f"calibrating {measure.kind}", start=first)
            for number, batch in enumerate(shown, 1):
                if batch is not None:
                    _run_batch(model, batch, collectors, how.device, getattr(source, "summed_loss", None) or _summed_loss)
                # Whole batches only: an interrupt can come between two layers.
                state = snapshot(min(done + number * group.size * config.batch_size, len(order)))
                due = checkpoint is not None and time.monotonic() - last_saved > config.checkpoint_every_s
                if group.any(due)[0]:
                    save(state)
                    last_saved = time.monotonic()
    except KeyboardInterrupt:
        if group.size == 1:  # others may not have finished their batch: then the last checkpoint stays
            save(state)
        raise
    return save(state)


@contextmanager
def _measured(model: nn.Module, collectors: Mapping[str, Collector], input_shape: Shape, device: torch.device | str) -> Iterator[None]:
    """The network on `device` in eval mode with frozen weights, every collector in its convolution's place."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        model.to(device)
        convs = [collector.layer for collector in collectors.values() if collector.masks_samples]
        in_order = convs if wants_nchw(model, convs, input_shape) else ()
        with evaluating(model), acting(collectors.values()), answering_as_nchw(in_order):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _run_batch(
    model: nn.Module,
    batch: Samples,
    collectors: Mapping[str, Collector],
    device: torch.device | str,
    summed_loss: Callable[[Any, Any, int], Tensor],
) -> None:
    """One forward pass (and one backward pass, where a collector needs gradients); sums change only when the whole batch went through."""
    images = batch.images.to(device)
    for collector in collectors.values():
        collector.begin(batch.indices)
    given = outputs(model, images, collectors)
    for collector in collectors.values():
        collector.turn()
    if needs_gradient(collectors):
        # The sum keeps each sample's gradient its own: in eval mode samples do not meet.
        loss = summed_loss(given, batch.labels, len(images))
        _require_finite([loss])
        if loss.requires_grad:
            loss.backward()
        if not any(collector.had_gradient for collector in collectors.values()):
            raise UsageError("no gradient reaches any convolution, which scores by gradients need; use --preset thesis")
    else:
        _require_finite(floats(given))
    for collector in collectors.values():
        collector.commit()


def outputs(model: nn.Module, images: Inputs, collectors: Mapping[str, Collector]) -> Any:
    """What the network gives for a batch as a calibration pass computes it; `images` stay as they are.

    The network gets a copy that is no leaf of the graph: it may write to its input.
    """
    if not needs_gradient(collectors):
        with torch.no_grad():
            return answer(model, images.clone())
    return answer(model, tracked(images))


def needs_gradient(collectors: Mapping[str, Collector]) -> bool:
    """Whether a pass with these collectors goes backward too."""
    return any(collector.needs_gradient for collector in collectors.values())


def _summed_loss(logits: Any, labels: Tensor, samples: int) -> Tensor:
    if not isinstance(logits, Tensor):
        raise RunError(f"the network returns {type(logits).__name__}, not one tensor of class scores; give a loss of such outputs, loss=")
    labels = labels.to(logits.device)
    try:
        return F.cross_entropy(logits, labels, reduction="sum")
    except (RuntimeError, ValueError, IndexError) as error:
        got, wanted, largest = tuple(logits.shape), tuple(labels.shape), int(labels.max())
        raise RunError(
            f"the network gives outputs of shape {got} for labels of shape {wanted} up to {largest}; build it with more classes"
        ) from error


def _require_finite(values: list[Tensor]) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise RunError(
            "the network's output is NaN or infinite on calibration data; check the checkpoint and the normalisation of the data"
        )


def sample_order(size: int, config: CalibrationConfig) -> Tensor:
    """int64 [N]: which of `size` samples a pass visits, in its order."""
    if config.samples is None or config.samples >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(config.seed))[: config.samples]


def _saved(checkpoint: Path | None, kind: str, settings: dict[str, Any], collectors: Mapping[str, Collector]) -> Statistics | None:
    """The sums of an interrupted pass with the same settings."""
    if checkpoint is None or not (checkpoint / FACTS).is_file():
        return None
    saved = Statistics.load(checkpoint)
    if saved.kind != kind or saved.settings != settings or not collectors.keys() <= saved.layers.keys():
        return None
    check_fields(saved, (collector.site for collector in collectors.values()))
    return saved
