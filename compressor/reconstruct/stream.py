"""The images that a reconstruction reads, again and again in the same batches."""

from collections.abc import Iterator

import torch

from fineprune.calibrate.collect import CalibrationConfig, sample_order
from fineprune.common.errors import RunError
from fineprune.common.inputs import Inputs, Structured, numbers_of
from fineprune.common.processes import Group

from ..prune import CalibrationRun

_BATCH, _NUMBERS = 128, 32 * 3 * 224 * 224
"""Images of a batch, and numbers in it, at most."""


class Stream:
    """A seeded choice of `images` samples of `run`; each process of `group` has every n-th batch."""

    def __init__(self, run: CalibrationRun, images: int, group: Group) -> None:
        if len(run.source) == 0:
            raise RunError("there are no samples to reconstruct on; name a data set with training samples")
        order = sample_order(len(run.source), CalibrationConfig(samples=images, seed=run.config.seed))
        self.images, self.seed = len(order), run.config.seed
        self._source, self._device, self._few = run.source, run.device, order[:2]
        self._size = max(1, min(_BATCH, _NUMBERS // max(1, numbers_of(run.input_shape))))
        chunks = list(enumerate(order.split(self._size)))[group.rank :: group.size]
        self.numbers = [number for number, _ in chunks]
        self._indices = torch.cat([order[:0], *(chunk for _, chunk in chunks)])

    def few(self) -> Inputs:
        """The first two samples."""
        return self._first(2)

    def lead(self) -> Inputs:
        """One sample of noise [1,C,H,W], or the first, where inputs are structured."""
        first = self._first(1)
        if isinstance(first, Structured):
            return first
        return torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(first)

    def _first(self, count: int) -> Inputs:
        images: Inputs = next(iter(self._source.batches(count, indices=self._few[:count]))).images.to(self._device)
        return images

    def __iter__(self) -> Iterator[tuple[int, Inputs]]:
        """Number of the batch and images [N,C,H,W]."""
        if self.numbers:
            batches = self._source.batches(self._size, indices=self._indices)
            yield from ((number, batch.images.to(self._device)) for number, batch in zip(self.numbers, batches, strict=True))
