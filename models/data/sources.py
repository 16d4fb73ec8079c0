"""Where the pixels of a split come from: an array in memory, or files and data sets read sample by sample."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fineprune.common.errors import RunError

from .augment import Augmentation, augment_batch

MEMORY_LIMIT_BYTES = 2 << 30
"""Of all images of a source; what is larger is decoded or scaled batch by batch."""
_BATCHES_AHEAD = 2
_CHUNK = 256


@dataclass(frozen=True)
class Job:
    """One batch to read: positions int64 [N] in the source; seed of its augmentation, None for none."""

    positions: Tensor
    seed: int | None


class Source(Protocol):
    """Labelled images of one shape, uint8 (0-255) or float (scaled by whoever made them)."""

    labels: Tensor

    def read(self, jobs: Iterable[Job], augmentation: Augmentation, workers: int) -> Iterator[Tensor]:
        """Yield [N,C,H,W] for each job, in order, a function of the job alone."""
        ...


class ArraySource:
    """Images [N,C,H,W] in memory, made by `load` when they are first asked for (a split that is not used costs nothing)."""

    def __init__(self, load: Callable[[], Tensor], labels: Tensor) -> None:
        self._load = load
        self._images: Tensor | None = None
        self.labels = labels

    @property
    def images(self) -> Tensor:
        """All images, uint8 or float32 [N,C,H,W]."""
        if self._images is None:
            self._images = self._load()
        return self._images

    def read(self, jobs: Iterable[Job], augmentation: Augmentation, workers: int) -> Iterator[Tensor]:
        """As in `Source`; memory needs no workers."""
        for job in jobs:
            x = self.pixels(job.positions)
            yield x if job.seed is None else augment_batch(x, augmentation, torch.Generator().manual_seed(job.seed))

    def pixels(self, positions: Tensor) -> Tensor:
        """[N,C,H,W] of the images at int64 positions [N]."""
        return self.images[positions]

    def resized(self, size: int) -> "ArraySource":
        """The same images at size x size pixels (bilinear, antialiased when they shrink)."""
        count, channels = self.images.shape[:2]
        if count * channels * size * size * self.images.element_size() > MEMORY_LIMIT_BYTES:
            return _ResizedSource(self, size)
        return ArraySource(lambda: _resize(self.images, size), self.labels)


class _ResizedSource(ArraySource):
    """Images that are scaled whenever they are read, for all of them together would take too much memory."""

    def __init__(self, source: ArraySource, size: int) -> None:
        super().__init__(lambda: source.images, source.labels)
        self._size = size

    def pixels(self, positions: Tensor) -> Tensor:
        """As in `ArraySource`."""
        return _resize(self.images[positions], self._size)


class SampleSource:
    """Images that `load(position, augmentation or None, generator or None)` reads one by one: uint8 or float [C,H,W]."""

    def __init__(self, load: Callable[[int, Augmentation | None, np.random.Generator | None], Tensor], labels: Tensor) -> None:
        self._load = load
        self.labels = labels

    def read(self, jobs: Iterable[Job], augmentation: Augmentation, workers: int) -> Iterator[Tensor]:
        """As in `Source`; `workers` threads read ahead (decoding and scaling release Python's lock), 0 reads in this one."""
        if workers == 0:
            for job in jobs:
                yield _stack([self._sample(job, k, augmentation) for k in range(len(job.positions))])
            return
        pool = ThreadPoolExecutor(workers, thread_name_prefix="fineprune-data")
        waiting: deque[list[Future[Tensor]]] = deque()
        try:
            for job in jobs:
                waiting.append([pool.submit(self._sample, job, k, augmentation) for k in range(len(job.positions))])
                if len(waiting) > _BATCHES_AHEAD:
                    yield _stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield _stack([future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _sample(self, job: Job, k: int, augmentation: Augmentation) -> Tensor:
        generator = None if job.seed is None else np.random.default_rng([job.seed, k])
        return self._load(int(job.positions[k]), None if generator is None else augmentation, generator)


def _stack(samples: list[Tensor]) -> Tensor:
    shapes = {tuple(sample.shape) for sample in samples}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise RunError(f"images of different shapes in one data set, {first} and {second}; give all the same size, or image_size=")
    return torch.stack(samples)


def _resize(x: Tensor, size: int) -> Tensor:
    """In chunks, for an interpolation takes floating-point numbers: four times the memory of bytes."""
    resized = x.new_empty(*x.shape[:2], size, size)
    for start in range(0, len(x), _CHUNK):
        chunk = F.interpolate(x[start : start + _CHUNK].float(), (size, size), mode="bilinear", antialias=True)
        resized[start : start + _CHUNK] = chunk.round().clamp(0, 255) if x.dtype == torch.uint8 else chunk
    return resized
