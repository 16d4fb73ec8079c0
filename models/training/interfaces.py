"""What the trainers ask of data. `fineprune.models.data.ImageData` has it; so may anything else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fineprune.common.inputs import Inputs


class BatchLike(Protocol):
    """images float32 [N,C,H,W] (normalised) or what else a network is called on, labels int64 [N], indices int64 [N] into the split; all
    on the CPU."""

    @property
    def images(self) -> Inputs: ...
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


@runtime_checkable
class Masked(Protocol):
    """A layer that carries masks."""

    def masked_weight(self) -> Tensor:
        """The weight with what is dropped at zero."""
        ...


class Masking(Protocol):
    """Masks of the network that change while it trains, by its user's rule: the trainer says when, saves and restores."""

    @property
    def final(self) -> bool:
        """Whether they stay from now on; the best weights are looked for from then."""
        ...

    def update(self, progress: float) -> None:
        """Before each step: change the masks where that is due once `progress`, in [0,1], of the run is done."""
        ...

    @property
    def masks(self) -> Any:
        """Those of now, in plain containers of tensors, which stay as they are when others come."""
        ...

    def wear(self, masks: Any) -> None:
        """Give the network `masks` of before or of now: those of a worker that started with them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and text from which `load_state_dict` goes on exactly, before the weights are restored."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a run has besides its network, data and settings."""

    teacher: nn.Module | None = None
    """The network to learn from by `config.distill`; a resumed run must be given the same one."""
    masking: Masking | None = None
    """The masks of the network, where they change."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Further facts (JSON values) that must agree for a resume, such as the hash of the weights that training starts from."""
