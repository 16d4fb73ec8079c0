"""What a data set is to the rest of the program: three splits whose samples carry their labels and their positions."""

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fineprune.common.errors import UsageError
from fineprune.common.inputs import Inputs, Shape

from .augment import Augmentation
from .sources import Job, Source

DATA_ARGUMENTS = ("validation", "seed", "image_size", "crop", "channels", "white", "classes", "labels")
"""Facts of a manifest that are arguments of `load_data`, beside spec, mean and std; where one is absent or null it says nothing."""


class Batch(NamedTuple):
    """images: float32 [N,C,H,W], normalised, or a `Structured`; labels: int64 [N]; indices: int64 [N], positions in the split."""

    images: Inputs
    labels: Tensor
    indices: Tensor


class Split:
    """Samples 0 .. len-1, each the sample `positions[i]` of `source`; mean and std have one value per channel."""

    def __init__(
        self, source: Source, positions: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...], augmentation: Augmentation
    ) -> None:
        self._source = source
        self._positions = positions
        self._mean = torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1)
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def labels(self) -> Tensor:
        """int64 [len]: the label of each sample, without reading an image."""
        return self._source.labels[self._positions]

    def number_of_batches(self, batch_size: int, indices: Tensor | None = None, *, drop_last: bool = False) -> int:
        """How many batches one pass over the split (or over `indices` of it) has."""
        count = len(self) if indices is None else len(indices)
        return count // batch_size if drop_last else -(-count // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        indices: Tensor | None = None,
        workers: int = 0,
        start_batch: int = 0,
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """One pass, from batch `start_batch` on.

        generator: shuffles, and drives the augmentation; None keeps the order. Only its initial seed is read, and batch k
        is a function of that seed and k: a pass that is resumed at k goes on exactly as the whole one, and every epoch
        wants a generator with a seed of its own.
        indices: int64, the samples to visit, all of the split when None. workers: threads that read files ahead.
        part: (i, n) reads and gives only the i-th (from 0) of n parts of every batch, which differ in size by one at most.
        Raises UsageError for a bad size or index, and for augment=True without a generator.
        """
        if batch_size < 1 or start_batch < 0:
            raise UsageError(f"batch_size is at least 1 and start_batch at least 0, got {batch_size} and {start_batch}")
        if augment and generator is None:
            raise UsageError("augment=True draws at random and needs a generator")
        order = self._order(generator, indices)
        seed = generator.initial_seed() if generator is not None and augment else None
        count = self.number_of_batches(batch_size, order, drop_last=drop_last)
        numbers = range(start_batch, count)
        indices_of = [order[k * batch_size : (k + 1) * batch_size].tensor_split(part[1])[part[0]] for k in numbers]
        own = [] if part[0] == 0 else [part[0]]
        seeds = [None if seed is None else batch_seed(seed, k, *own) for k in numbers]
        return self._batches(indices_of, seeds, workers)

    def subset(self, indices: Tensor) -> "Split":
        """Only the samples int64 [n] of this split, which become samples 0 .. n-1."""
        smaller = copy.copy(self)
        smaller._positions = self._positions[indices]
        return smaller

    def relabelled(self, labels: Tensor) -> "Split":
        """The same samples with other labels, int64 [len]."""
        other, source = copy.copy(self), copy.copy(self._source)
        source.labels = source.labels.clone()
        source.labels[self._positions] = labels
        other._source = source
        return other

    def _order(self, generator: torch.Generator | None, indices: Tensor | None) -> Tensor:
        chosen = torch.arange(len(self)) if indices is None else torch.as_tensor(indices, dtype=torch.int64).cpu()
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise UsageError(f"indices are 0 to {len(self) - 1} in this split, got {int(chosen.min())} to {int(chosen.max())}")
        if generator is None:
            return chosen
        return chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(generator.initial_seed()))]

    def _batches(self, indices: list[Tensor], seeds: list[int | None], workers: int) -> Iterator[Batch]:
        jobs = (Job(self._positions[chosen], s) for chosen, s in zip(indices, seeds, strict=True))
        read = self._source.read(jobs, self._augmentation, workers)
        for chosen, pixels in zip(indices, read, strict=True):
            yield Batch(self._normalised(pixels), self._source.labels[self._positions[chosen]], chosen)

    def _normalised(self, pixels: Tensor) -> Tensor:
        x = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()
        return (x - self._mean).div_(self._std)


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set: `load_data(spec)` makes it again; `seed` and `validation` (a fraction) made its validation split.

    crop, white, channels, labels: arguments of `load_data` where they make a difference. notes: what was understood of odd data.
    """

    spec: str
    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    test: Split
    augmentation: Augmentation
    seed: int = 0
    validation_fraction: float = 0.0
    image_size: int | None = None
    crop: float | None = None
    white: float | None = None
    channels: int | None = None
    labels: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """What one sample is like."""
        return self.input_shape

    @property
    def labelled(self) -> bool:
        """Whether the images have labels; those that have none are of class -1."""
        return not bool((self.train.labels < 0).any())

    @property
    def held_out(self) -> str:
        """The split that accuracies refer to: "test", or "validation" where there is no test split."""
        return "test" if len(self.test) else "validation"

    def to_json(self) -> dict[str, Any]:
        """Facts for a manifest: those named as `load_data`'s arguments make the same data again."""
        given = {name: getattr(self, name) for name in ("crop", "white", "channels", "labels")}
        return {
            "spec": self.spec,
            "name": self.name,
            "classes": list(self.classes),
            "input_shape": list(self.input_shape),
            "sizes": {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)},
            "validation": self.validation_fraction,
            "seed": self.seed,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "augmentation": str(self.augmentation),
            **{name: value for name, value in given.items() if value is not None},
        }

    @property
    def digest(self) -> str:
        """By which data of other facts are told apart."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def with_spec(self, spec: str) -> "ImageData":
        """The same data under the spec string that it came from."""
        return replace(self, spec=spec)


def batch_seed(seed: int, batch: int, *part: int) -> int:
    """An independent 63-bit seed for batch number `batch` of a pass with initial seed `seed`, or for a later part of it."""
    high, low = np.random.SeedSequence([seed & (2**64 - 1), batch, *part]).generate_state(2)
    return (int(high) << 31) ^ int(low)
