"""Who computes which batch: every batch is handed out, and counted, exactly once, whatever dies in between.

A ticket names a batch: position p of a shard is batch p % n of that shard's epoch p // n. A worker holds at most one, under a lease;
only the lease that is current completes it, so a gradient that comes twice, or from a worker given up, changes nothing. Tickets of the
dead go back and are handed out before new ones. Saved with the weights, the ledger makes a killed server resume without a loss: what was
applied after the save is undone with the weights, and its tickets are open again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fineprune.common.errors import RunError


class Ticket(NamedTuple):
    """Batch `batch` of epoch `epoch` of a shard; `position` counts over its epochs."""

    shard: int
    position: int
    epoch: int
    batch: int


class Lease(NamedTuple):
    """A ticket in a worker's hands; (incarnation, serial) is used once and never again."""

    worker: int
    incarnation: int
    serial: int
    ticket: Ticket


@dataclass
class _Shard:
    batches: int
    """In one of its epochs."""
    next: int = 0
    returned: tuple[int, ...] = ()
    below: int = 0
    """Every position below this one is done."""
    ahead: frozenset[int] = frozenset()
    """Done, too."""

    def complete(self, position: int) -> bool:
        if position < self.below or position in self.ahead:
            return False
        ahead = {*self.ahead, position}
        while self.below in ahead:
            ahead.remove(self.below)
            self.below += 1
        self.ahead = frozenset(ahead)
        return True


class Ledger:
    """`total` tickets from shards with so many `batches` each; worker m draws from shard m, or all from the only one."""

    def __init__(self, total: int, batches: Sequence[int], incarnation: int = 0) -> None:
        if min(batches) < 1:
            worker = list(batches).index(min(batches))
            raise RunError(f"the shard of worker {worker} has no batch of two images; use fewer workers or a larger alpha")
        self.total = total
        self.incarnation = incarnation
        self.leases: dict[int, Lease] = {}
        self.done = 0
        self.refused = 0
        """Gradients that were not counted: come twice, or from a worker given up."""
        self._shards = [_Shard(count) for count in batches]
        self._serial = 0

    @property
    def finished(self) -> bool:
        """Whether every ticket is done."""
        return self.done >= self.total

    def available(self, worker: int) -> bool:
        """Whether there is a ticket for `worker`."""
        shard = self._shard(worker)
        return bool(shard.returned) or sum(s.next for s in self._shards) < self.total

    def issue(self, worker: int) -> Lease | None:
        """A ticket, or None where none is left. A lease that the worker still has is given up."""
        self.give_up(worker)
        if not self.available(worker):
            return None
        shard = self._shard(worker)
        if shard.returned:
            position, shard.returned = shard.returned[0], shard.returned[1:]
        else:
            position, shard.next = shard.next, shard.next + 1
        ticket = Ticket(self._index(worker), position, position // shard.batches, position % shard.batches)
        self._serial += 1
        self.leases[worker] = Lease(worker, self.incarnation, self._serial, ticket)
        return self.leases[worker]

    def complete(self, lease: Lease) -> bool:
        """Count the lease's ticket as done; False (and it is counted as refused) where the lease is not current."""
        if self.leases.get(lease.worker) != lease or not self._shards[lease.ticket.shard].complete(lease.ticket.position):
            self.refused += 1
            return False
        del self.leases[lease.worker]
        self.done += 1
        return True

    def give_up(self, worker: int) -> None:
        """Take back what `worker` holds."""
        lease = self.leases.pop(worker, None)
        if lease is not None:
            shard = self._shards[lease.ticket.shard]
            shard.returned = tuple(sorted((*shard.returned, lease.ticket.position)))

    def state_dict(self) -> dict[str, Any]:
        """Everything but total and incarnation."""
        shards = [
            {"batches": s.batches, "next": s.next, "returned": list(s.returned), "below": s.below, "ahead": sorted(s.ahead)}
            for s in self._shards
        ]
        leases = [[lease.worker, lease.incarnation, lease.serial, list(lease.ticket)] for lease in self.leases.values()]
        return {"shards": shards, "leases": leases, "done": self.done, "refused": self.refused, "serial": self._serial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._shards = [_Shard(s["batches"], s["next"], tuple(s["returned"]), s["below"], frozenset(s["ahead"])) for s in state["shards"]]
        leases = [Lease(worker, incarnation, serial, Ticket(*ticket)) for worker, incarnation, serial, ticket in state["leases"]]
        self.leases = {lease.worker: lease for lease in leases}
        self.done, self.refused, self._serial = state["done"], state["refused"], state["serial"]

    def _index(self, worker: int) -> int:
        return worker if len(self._shards) > 1 else 0

    def _shard(self, worker: int) -> _Shard:
        return self._shards[self._index(worker)]
