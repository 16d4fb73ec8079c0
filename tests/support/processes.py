"""Two processes of a gloo group on this machine, for tests of what they compute together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

SIZE = 2


def in_two(work: Callable[[int, Path], Any], folder: Path) -> list[Any]:
    """What `work(rank, folder)`, a function of a module, gives in each of two processes: tensors, numbers and text."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_one, args=(work, folder), nprocs=SIZE)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(SIZE)]


def _one(rank: int, work: Callable[[int, Path], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=SIZE)
    torch.save(work(rank, folder), folder / f"{rank}.pt")
    dist.destroy_process_group()
