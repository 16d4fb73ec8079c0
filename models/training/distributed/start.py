"""Which engine an asynchronous training runs on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fineprune.common.errors import UsageError
from fineprune.common.progress import Progress

from ..config import TrainConfig
from ..interfaces import DataLike
from ..results import EpochRecord
from .ray_engine import train_on_ray
from .trainer import AsyncResult, train_async


def train_asynchronously(
    model: nn.Module,
    data: DataLike,
    config: TrainConfig,
    *,
    output: Path | None,
    device: str | torch.device,
    progress: Progress,
    on_epoch: Callable[[EpochRecord], None] | None,
    identity: Mapping[str, Any] | None,
) -> AsyncResult:
    """As `train`, by the server and the workers of `config.asynchronous`."""
    settings = config.asynchronous
    if settings is None:
        raise UsageError("the config asks for no asynchronous training; set asynchronous")
    if settings.engine == "ray":
        return train_on_ray(
            model, data, config, settings, output=output, device=device, progress=progress, on_epoch=on_epoch, identity=identity
        )
    return train_async(
        model,
        data,
        config,
        settings,
        output=output,
        device=device,
        progress=progress,
        on_epoch=None if on_epoch is None else lambda record, run: on_epoch(record),
        identity=identity,
    )
