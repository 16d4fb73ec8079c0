"""The processes of a distributed run, started by `torchrun` or by the caller: who this one is, and what all of them say together.

Every method of a group is called by all of its processes, in the same order. In a group of one each gives back what it got.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import RunError, UsageError
from .progress import Progress, Silent

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This is process `rank` (from 0) of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def speaker(self, progress: Progress) -> Progress:
        """`progress` in the first process; the others are silent."""
        return progress if self.first else Silent()

    def part(self, items: Tensor) -> Tensor:
        """This process's share of [N, ...]: neighbours, none or one more than in a later process."""
        return items if self.size == 1 else items.tensor_split(self.size)[self.rank]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether some process has it."""
        if self.size == 1:
            return flags
        return tuple(count > 0 for count in self.total(torch.tensor(flags, dtype=torch.int64)).tolist())

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes; `values` stay as they are."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` gives, or raises, in the first process, which alone does it."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        value: T = outcome[0]
        return value


@contextmanager
def joined() -> Iterator[Group]:
    """The group that this process belongs to: the caller's, the one that torchrun's environment names, or one of itself alone.

    With CUDA each process of a machine takes a device of its own. RunError in the block where another process has ended meanwhile;
    UsageError for a group of the caller's that moves no tensors of the CPU.
    """
    callers = dist.is_available() and dist.is_initialized()
    if not callers:
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or os.environ["WORLD_SIZE"] == "1":
            yield Group()
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    group = Group(dist.get_rank(), dist.get_world_size())
    if group.size > 1 and "cpu:" not in dist.get_backend_config():
        raise UsageError(
            f"the process group ({dist.get_backend_config()}) moves no tensors of the CPU; initialise it with cpu:gloo,cuda:nccl"
        )
    try:
        yield group
    except RuntimeError as error:
        if not _is_left(error):
            raise
        message = "another process of this run has ended or cannot be reached; what it said last tells why, mend that and start all again"
        raise RunError(message) from error
    finally:
        if not callers:
            dist.destroy_process_group()


def _is_left(error: BaseException | None) -> bool:
    """Whether the error, or one that it was made from, is gloo's about another process that does not answer."""
    return error is not None and (re.search(r"gloo.transport", str(error)) is not None or _is_left(error.__cause__))
