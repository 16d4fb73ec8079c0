"""What the trainers ask of data. `fineprune.models.data.ImageData` has it; so may anything else."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class BatchLike(Protocol):
    """images float32 [N,C,H,W] (normalised), labels int64 [N], indices int64 [N] into the split; all on the CPU."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def indices(self) -> Tensor: ...


class SplitLike(Protocol):
    """Order and augmentation of batch k are a pure function of (seed of `generator`, k): `start_batch` continues an epoch exactly.

    Training in several processes also asks for `part=(i, n)`, the i-th (from 0) of n parts of every batch as `Tensor.tensor_split` makes
    them; in one process it is never given.
    """

    def __len__(self) -> int: ...

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
    ) -> Iterator[BatchLike]: ...

    def number_of_batches(self, batch_size: int, indices: Tensor | None = None) -> int: ...


class DataLike(Protocol):
    """Splits to train and validate on; `to_json()`, where there is one, identifies the data of a resumable run."""

    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def train(self) -> SplitLike: ...
    @property
    def validation(self) -> SplitLike: ...
