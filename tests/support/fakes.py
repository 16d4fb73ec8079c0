"""Tiny stand-ins for a data set, with the interface that trainers use, and ways to stop a run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class FakeBatch(NamedTuple):
    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass
class FakeSplit:
    """images float32 [N,C,H,W] and labels int64 [N] in memory; augmentation adds noise drawn per batch."""

    images: Tensor
    labels: Tensor
    fail_at: set[int] = field(default_factory=set)
    """Batches handed out so far after which the next request raises ConnectionError once: a crash from outside."""
    handed_out: int = 0
    seen: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def number_of_batches(self, batch_size: int, indices: Tensor | None = None) -> int:
        return -(-(len(self) if indices is None else len(indices)) // batch_size)

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
    ) -> Iterator[FakeBatch]:
        chosen = torch.arange(len(self)) if indices is None else indices
        seed = generator.initial_seed() if generator is not None else 0
        if generator is not None:
            chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
        for k, whole in enumerate(chosen.split(batch_size)):
            if k < start_batch or (drop_last and len(whole) < batch_size):
                continue
            own = whole.tensor_split(part[1])[part[0]]
            if self.handed_out in self.fail_at:
                self.fail_at.remove(self.handed_out)
                raise ConnectionError("the disk went away")
            self.handed_out += 1
            self.seen.append(own)
            images = self.images[own]
            if augment:
                images = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed + k))
            yield FakeBatch(images, self.labels[own], own)


@dataclass
class FakeData:
    """Classes told apart by the mean of one channel each; the splits hold different images."""

    train: FakeSplit
    validation: FakeSplit
    test: FakeSplit
    classes: tuple[str, ...] = ("a", "b", "c")
    spec: str = "fake"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.images.shape[1:])

    def to_json(self) -> dict[str, Any]:
        return {"spec": self.spec, "classes": list(self.classes)}


def fake_data(train: int = 60, validation: int = 24, test: int = 12, *, size: int = 6, seed: int = 0, spec: str = "fake") -> FakeData:
    """Three classes of 3 x size x size images."""
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> FakeSplit:
        labels = torch.randint(0, 3, (count,), generator=generator)
        images = torch.randn(count, 3, size, size, generator=generator)
        images[torch.arange(count), labels] += 0.7
        return FakeSplit(images, labels)

    return FakeData(split(train), split(validation), split(test), spec=spec)


def small_network(seed: int = 0, *, dropout: float = 0.2) -> nn.Sequential:
    """Convolution, BatchNorm, dropout and a linear layer: everything that carries state or draws numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 7, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(7, 3),
        )


@dataclass
class Recorder:
    """A Progress that keeps what it was told."""

    lines: list[str] = field(default_factory=list)
    loops: list[tuple[str, int | None, int]] = field(default_factory=list)

    def __call__(self, items: Iterable[T], *, total: int | None, description: str, start: int = 0) -> Iterator[T]:
        self.loops.append((description, total, start))
        yield from items

    def log(self, message: str) -> None:
        self.lines.append(message)
