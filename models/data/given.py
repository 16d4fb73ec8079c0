"""Samples that are given in Python, as their owner's network takes them: a DataLoader, a Dataset, arrays, with labels or without.

Nothing is scaled, normalised or augmented here: what a Dataset or a DataLoader's collate_fn makes of a sample goes to the network. A
network that takes one tensor [N,C,H,W] is called on it; any other is called by the user's `forward`, on inputs of any structure.
"""

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from fineprune.common.errors import FinepruneError, RunError, UsageError
from fineprune.common.inputs import Forward, Inputs, Shape, Structured, tensors
from fineprune.common.progress import Progress

from ..objective import Objective, identity_of, moved, objective_of
from ..user_code import describe
from .augment import Augmentation
from .images import Batch, ImageData, Split

GIVEN = "the samples given in Python"
_FORMS = "a DataLoader, a Dataset with a length, a pair (inputs, labels) of arrays or tensors, or inputs alone"
_READ_AT_ONCE = 256


class _Arrays(Dataset[Any]):
    """Samples along the first axis of `tensors`, read a batch at a time."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, positions: list[int]) -> tuple[Tensor, ...]:
        return tuple(tensor[positions] for tensor in self.tensors)


def _as_read(batch: Any) -> Any:
    return batch


class GivenSplit(Split):
    """The samples `positions[i]` of a loader's data set, put together by its collate_fn; its sampler and batches have no part in it."""

    def __init__(
        self,
        loader: DataLoader[Any],
        positions: Tensor,
        labels: Tensor | None = None,
        objective: Objective | None = None,
        forward: Forward | None = None,
    ) -> None:
        """labels: int64 [len] in the place of the loader's; None: they come with the samples. objective: of other targets. forward: the
        user's call of the network; None: it is called on the inputs, which are one tensor."""
        self._loader, self._positions, self._labels, self.objective, self._forward = loader, positions, labels, objective, forward

    @property
    def summed_loss(self) -> Callable[[Any, Any, int], Tensor] | None:
        """The sum of the samples' losses for outputs on some device, targets and their number; None: cross-entropies."""
        objective = self.objective
        if objective is None:
            return None
        return lambda outputs, targets, samples: objective.summed(outputs, moved(targets, _device(outputs)), samples)

    @property
    def labels(self) -> Tensor:
        """int64 [len]: read with all samples where nobody has said them."""
        if self._labels is None:
            found = [batch.labels for batch in self.batches(_READ_AT_ONCE)]
            self._labels = torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)
        return self._labels

    def subset(self, indices: Tensor) -> "GivenSplit":
        """As in `Split`."""
        labels = None if self._labels is None else self._labels[indices]
        return GivenSplit(self._loader, self._positions[indices], labels, self.objective, self._forward)

    def relabelled(self, labels: Tensor) -> "GivenSplit":
        """As in `Split`."""
        other = copy.copy(self)
        other._labels = labels
        return other

    def _batches(self, indices: list[Tensor], seeds: list[int | None], workers: int) -> Iterator[Batch]:
        given = self._loader
        loader = DataLoader(
            given.dataset,
            batch_sampler=[self._positions[chosen].tolist() for chosen in indices],
            collate_fn=given.collate_fn,
            num_workers=workers or given.num_workers,
            worker_init_fn=given.worker_init_fn,
            generator=torch.Generator().manual_seed(next((seed for seed in seeds if seed is not None), 0)),
        )
        read = iter(loader)
        for chosen in indices:
            try:
                inputs, labels = pair_of(next(read))
            except FinepruneError:
                raise
            except Exception as error:  # the user's own code may raise anything
                raise RunError(f"{GIVEN} could not be read at {self._positions[chosen][:8].tolist()}: {describe(error)}") from error
            given_to = inputs if self._forward is None else Structured(inputs, len(chosen), self._forward)
            yield Batch(given_to, self._labels[chosen] if self._labels is not None else labels, chosen)


@dataclass(frozen=True, kw_only=True)
class GivenData(ImageData):
    """An `ImageData` that no spec makes again; content: a hash of a few samples, by which a resumed run knows them."""

    has_labels: bool
    content: str
    sample: Structured | None = None
    """One of them, where the network is called by the user's `forward`; None: float32 [C,H,W]."""

    @property
    def shape(self) -> Shape:
        """As in `ImageData`; input_shape is () where there is a `forward`."""
        return self.input_shape if self.sample is None else self.sample

    @property
    def labelled(self) -> bool:
        """Whether labels came with the samples."""
        return self.has_labels

    def to_json(self) -> dict[str, Any]:
        """Facts that tell these samples from others."""
        objective = objective_of(self.train)
        called = {} if self.sample is None else {"forward": identity_of(self.sample.forward)}
        return {**super().to_json(), "content": self.content, "task": objective and objective.to_json(), **called}


def given_data(
    train: Any,
    *,
    validation: Any = None,
    test: Any = None,
    seed: int = 0,
    objective: Objective | None = None,
    forward: Forward | None = None,
    progress: Progress,
) -> GivenData:
    """Samples as splits; a line of the log says which are held out.

    train, test, and validation where it is no fraction: a DataLoader (its data set and collate_fn serve), a map-style Dataset of inputs or
    of (input, label), a pair (inputs [N,C,H,W], labels [N]) of arrays or tensors, or inputs alone. validation: else a fraction in [0,1) of
    the training samples (0.1), chosen by `seed`. objective: a user's task, whose targets are of any structure. forward(model, inputs):
    the user's call of the network, for inputs of any structure. UsageError for other things, RunError for samples that cannot be read.
    """
    fraction = 0.1 if validation is None else validation
    loaders = {"train": loader_of(train, "data")}
    if test is not None:
        loaders["test"] = loader_of(test, "test")
    if not isinstance(fraction, int | float):
        loaders["validation"] = loader_of(fraction, "validation")
    elif isinstance(fraction, bool) or not 0 <= fraction < 1:
        raise UsageError(f"validation is samples, or a fraction in [0,1) of the training samples, got {fraction!r}")
    shapes = {name: _checked(loader, name, objective, forward) for name, loader in loaders.items()}
    if len(set(shapes.values())) > 1:
        raise UsageError(f"{GIVEN} differ in shape or in having labels: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")
    shape, has_labels = shapes["train"]
    if objective is not None and not has_labels:
        raise UsageError("a loss needs targets, and data holds inputs alone; give (inputs, targets), or leave loss out")
    parts, held_out = _positions(loaders, fraction, seed)

    def split(name: str) -> GivenSplit:
        positions = parts.get(name, torch.zeros(0, dtype=torch.int64))
        labels = None if has_labels else torch.full((len(positions),), -1)
        return GivenSplit(loaders.get(name, loaders["train"]), positions, labels, objective, forward)

    first = None if forward is None else next(iter(split("train").batches(1))).images
    data = GivenData(
        spec=GIVEN,
        name="given",
        classes=(),
        input_shape=shape,
        mean=(0.0,) * sum(shape[:1]),
        std=(1.0,) * sum(shape[:1]),
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        augmentation=Augmentation(crop=False, flip=False),
        seed=seed,
        has_labels=has_labels,
        content=_content(split("train")),
        sample=first if isinstance(first, Structured) else None,
    )
    sampler = "; the loader's sampler is not used" if isinstance(train, DataLoader) else ""
    sizes = f"{len(data.train)} samples to train on, {len(data.validation)} to validate on ({held_out}), {len(data.test)} to test on"
    progress.log(f"data: {sizes}{sampler}")
    return data


def _positions(loaders: Mapping[str, DataLoader[Any]], fraction: Any, seed: int) -> tuple[dict[str, Tensor], str]:
    """By split, int64: where its samples are in their data set; and how people are told where those that validate come from."""
    parts = {name: torch.arange(_length(loader)) for name, loader in loaders.items()}
    if "validation" in loaders:
        return parts, "given"
    order = torch.randperm(len(parts["train"]), generator=torch.Generator().manual_seed(seed))
    count = min(max(round(fraction * len(order)), int(fraction > 0)), len(order) - 1)
    parts["validation"], parts["train"] = order[:count].sort().values, order[count:].sort().values
    return parts, f"taken from them by seed {seed}" if count else "none"


def is_given(data: Any) -> bool:
    """Whether `data` are samples, of whatever form, and no data set of ours or its name."""
    known = isinstance(data, str | bytes | os.PathLike | ImageData | type | dict)
    return not known and (hasattr(data, "__getitem__") or hasattr(data, "__iter__"))


def loader_of(samples: Any, name: str) -> DataLoader[Any]:
    """A loader whose data set and collate_fn give `samples`; UsageError, naming the argument, for what has none."""
    dataset: Any
    if isinstance(samples, DataLoader):
        dataset, loader = samples.dataset, samples
    elif isinstance(samples, Tensor | np.ndarray) or (
        isinstance(samples, tuple | list) and len(samples) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in samples)
    ):
        arrays = samples if isinstance(samples, tuple | list) else (samples,)
        tensors = tuple(_narrow(torch.as_tensor(array).detach().cpu()) for array in arrays)
        if len({len(tensor) if tensor.ndim else -1 for tensor in tensors}) > 1:
            raise UsageError(f"{name} has {' inputs and '.join(str(list(tensor.shape)) for tensor in tensors)} labels; give one for each")
        dataset = _Arrays(tensors)
        loader = DataLoader(dataset, batch_size=1, collate_fn=_as_read)
    elif hasattr(samples, "__getitem__") and isinstance(samples, Sized) and not isinstance(samples, tuple | list | dict):
        dataset = samples
        loader = DataLoader(dataset, batch_size=1, collate_fn=default_collate)
    else:
        raise UsageError(f"{name} is {_FORMS}; got an object of type {type(samples).__name__}")
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise UsageError(f"{name} is read in an order of our own: an iterable data set has none; give a Dataset with a length")
    if not len(dataset):
        raise RunError(f"{name} holds no samples")
    return loader


def first_inputs(samples: Any, count: int, name: str, forward: Forward | None = None) -> Inputs:
    """The inputs of the first `count` samples."""
    loader = loader_of(samples, name)
    _checked(without_labels(loader, name), name, None, forward)
    count = min(count, _length(loader))
    return next(iter(GivenSplit(loader, torch.arange(count), forward=forward).batches(count))).images


def has_classes(samples: Any, name: str) -> bool:
    """Whether samples have labels of a classifier, or none."""
    [batch] = GivenSplit(loader_of(samples, name), torch.zeros(1, dtype=torch.int64)).batches(1)
    return batch.labels is None or _is_class(batch.labels)


class _InputsAlone:
    """A collate_fn that leaves labels out."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        return pair_of(self.collate(samples))[0]


def without_labels(samples: Any, name: str) -> DataLoader[Any]:
    """The inputs of samples that may have labels."""
    given = loader_of(samples, name)
    return DataLoader(
        given.dataset,
        batch_size=1,
        collate_fn=_InputsAlone(given.collate_fn),
        num_workers=given.num_workers,
        worker_init_fn=given.worker_init_fn,
    )


def pair_of(batch: Any) -> tuple[Any, Any]:
    """Inputs and labels of a batch; None for labels where it has none."""
    if isinstance(batch, tuple | list):
        if len(batch) in (1, 2):
            return batch[0], batch[1] if len(batch) == 2 else None
        raise UsageError(f"a batch of {GIVEN} has {len(batch)} parts; give inputs, or (inputs, labels): a collate_fn can put them so")
    return batch, None


def _narrow(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.float64 else values


def _length(loader: DataLoader[Any]) -> int:
    return len(loader.dataset)  # type: ignore[arg-type]


def _checked(loader: DataLoader[Any], name: str, objective: Objective | None, forward: Forward | None) -> tuple[tuple[int, ...], bool]:
    """Shape [C,H,W] of the first sample, () with a `forward`, and whether it has a label; UsageError for other samples."""
    [batch] = GivenSplit(loader, torch.zeros(1, dtype=torch.int64)).batches(1)
    inputs, labels = batch.images, batch.labels
    if forward is not None:
        if not tensors(inputs):
            raise UsageError(f"{name}: inputs hold no tensor, got {type(inputs).__name__}; a collate_fn can make tensors of them")
    elif isinstance(inputs, Mapping | tuple | list):
        call = "model(**inputs)" if isinstance(inputs, Mapping) else "model(*inputs)"
        raise UsageError(
            f"{name}: inputs are {type(inputs).__name__}s of tensors; say how the network is called on them: "
            f"forward=lambda model, inputs: {call}"
        )
    elif not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.dtype != torch.float32:
        got = f"{inputs.dtype} {list(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(
            f"{name}: inputs are float32 [N,C,H,W] as the network takes them, got {got}; convert them (images of bytes are read by "
            "fineprune.models.data.data_from_arrays)"
        )
    if objective is None and labels is not None and not _is_class(labels):
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UsageError(f"{name}: labels of a classifier are int64, one for each input; got {got} for one of them; other tasks give loss=")
    return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) and forward is None else (), labels is not None


def _is_class(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.ndim == 1


def _content(split: Split) -> str:
    images = next(iter(split.batches(min(8, len(split))))).images
    digest = hashlib.sha256()
    for tensor in tensors(images.value if isinstance(images, Structured) else images):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _device(outputs: Any) -> torch.device:
    return next((tensor.device for tensor in tensors(outputs)), torch.device("cpu"))
