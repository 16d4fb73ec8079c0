"""Images without labels: what can be done on them, and what stands in for accuracy: agreement with the dense network's answers."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.errors import UsageError
from fineprune.common.progress import Progress
from fineprune.compressor.config import PruneConfig
from fineprune.compressor.criteria import criteria
from fineprune.models.data import ImageData, Split
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.evaluate import eval_mode
from fineprune.models.training.passes import forward

_BATCH = 32


def check_criteria(data: ImageData, config: PruneConfig) -> None:
    """UsageError where a method of `config` reads labels, which `data` lack; it names those that don't."""
    for part in config.parts:
        if not data.labelled and part.method.reads_labels:
            able = ", ".join(method.name for method in criteria(part.mask) if not method.reads_labels)
            raise UsageError(
                f"{part.kind} criterion {part.criterion!r} needs labels, and there are none in {data.spec}; these need none: {able}"
            )


def check_training(data: ImageData, config: TrainConfig | None) -> None:
    """UsageError where `data` lack the labels that a fine-tuning learns from: all but one that only the dense network teaches."""
    taught = config is not None and config.distill is not None and config.distill.share == 1
    if config is not None and not data.labelled and not taught:
        raise UsageError(
            f"fine-tuning needs labels, and there are none in {data.spec}; leave it out (--epochs 0; in Python: epochs=0) or learn from "
            "the dense network alone (--distill 1; in Python: distill=1)"
        )


def answered(data: ImageData, model: nn.Module, device: torch.device, progress: Progress, *, training: bool) -> ImageData:
    """`data` with the top class of `model` as the label of every image that is compared on (with `training`, also of those trained on)."""
    parts = ["train"] if training or not len(data.validation) else []
    parts += [part for part in ("validation", "test") if len(getattr(data, part))]
    changed: dict[str, Any] = {part: _answered(getattr(data, part), model, device, progress) for part in parts}
    return replace(data, **changed)


def _answered(split: Split, model: nn.Module, device: torch.device, progress: Progress) -> Split:
    found: list[Tensor] = []
    model.to(device)
    with eval_mode(model), torch.inference_mode():
        for batch in progress(split.batches(_BATCH), total=split.number_of_batches(_BATCH), description="answers of the dense network"):
            found.append(forward(model, batch.images.to(device)).argmax(1).cpu())
    return split.relabelled(torch.cat(found).clone())
