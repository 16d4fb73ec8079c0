"""The batch of a ticket: a pure function of the seed and the ticket, and fast where tickets come in order."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fineprune.common.errors import RunError, UsageError

from ..config import TrainConfig
from ..device import derive_seed
from ..interfaces import BatchLike, SplitLike
from .config import AsyncConfig
from .ledger import Ticket
from .shards import dirichlet, iid


class Feed:
    """Batches of `split`, in one common order or in one for each shard."""

    def __init__(self, split: SplitLike, config: TrainConfig, shards: Sequence[Tensor] | None = None) -> None:
        self.split, self.config, self.shards = split, config, shards
        self._open: dict[int, tuple[Ticket, Iterator[BatchLike]]] = {}
        """By shard: the ticket that the iterator gives next."""

    def batch(self, ticket: Ticket) -> BatchLike:
        """The ticket's batch. Those of one shard are read ahead in order; another order costs a new start."""
        waiting, batches = self._open.get(ticket.shard, (None, iter(())))
        if waiting is None or waiting[2:] != ticket[2:]:
            batches = self._start(ticket)
        batch = next(batches, None)
        if batch is None:
            raise RunError(f"the training split ended before batch {ticket.batch + 1} of epoch {ticket.epoch + 1}; its length is wrong")
        self._open[ticket.shard] = (Ticket(ticket.shard, ticket.position + 1, ticket.epoch, ticket.batch + 1), batches)
        return batch

    def batches(self) -> list[int]:
        """In an epoch of each shard."""
        return [_batches(n, self.config.batch_size) for n in ([len(self.split)] if self.shards is None else map(len, self.shards))]

    def _start(self, ticket: Ticket) -> Iterator[BatchLike]:
        parts: tuple[int | str, ...] = (self.config.seed, "order", ticket.epoch)
        generator = torch.Generator().manual_seed(derive_seed(*parts, *(() if self.shards is None else (ticket.shard,))))
        return self.split.batches(
            self.config.batch_size,
            generator=generator,
            augment=self.config.augment,
            indices=None if self.shards is None else self.shards[ticket.shard],
            workers=self.config.workers,
            start_batch=ticket.batch,
        )


def make_feed(split: SplitLike, config: TrainConfig, settings: AsyncConfig) -> Feed:
    """With the shards that the settings ask for. UsageError where there are too few samples, or no labels to divide by."""
    if settings.shards == "shared":
        return Feed(split, config)
    if len(split) < 2 * settings.workers:
        raise UsageError(f"{len(split)} training images do not make {settings.workers} shards; use fewer workers")
    seed = derive_seed(config.seed, "shards")
    if settings.shards == "iid":
        return Feed(split, config, iid(len(split), settings.workers, seed))
    labels = getattr(split, "labels", None)
    if not isinstance(labels, Tensor):
        raise UsageError("Dirichlet shards need the labels of the training split, and it has none at hand; use iid shards")
    return Feed(split, config, dirichlet(labels.cpu(), settings.workers, settings.alpha, seed))


def _batches(images: int, batch_size: int) -> int:
    """All, but for a last one of a single sample, as in the plain trainer."""
    whole = -(-images // batch_size)
    return whole - 1 if whole > 1 and batch_size > 1 and images % batch_size == 1 else whole
