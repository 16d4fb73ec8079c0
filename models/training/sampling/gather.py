"""Observations of all processes of a distributed run, in the same order everywhere, so that every process keeps the same counts."""

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(indices: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """indices int64 [n], losses float32 [n] on the CPU, of this process and its peers, by rank; n may differ between ranks.

    Without an initialised process group they come back as they are. Every process must call this equally often.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return indices, losses
    parts: list[tuple[Tensor, Tensor]] = [(indices, losses)] * dist.get_world_size()
    dist.all_gather_object(parts, (indices, losses))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
