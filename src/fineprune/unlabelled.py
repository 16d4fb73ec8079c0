"""Samples without labels: what can be done on them, and what stands in for accuracy: agreement with the dense network's answers.

class scores [N,K]   the share of samples whose top class is that of the dense network
other outputs y      || y - y_dense || / || y_dense ||, over all floating-point numbers of a sample's outputs
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.copies import copied
from fineprune.common.errors import UsageError
from fineprune.common.inputs import mapped
from fineprune.common.progress import Progress
from fineprune.compressor.config import PruneConfig
from fineprune.compressor.criteria import criteria
from fineprune.models.data import ImageData, Split
from fineprune.models.data.images import Batch
from fineprune.models.objective import AGREEMENT, RELATIVE_ERROR, Metric, Objective, is_class_scores
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.distillation import output_loss
from fineprune.models.training.evaluate import eval_mode
from fineprune.models.training.passes import forward, widened

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


def answered(data: ImageData, model: nn.Module, device: torch.device, progress: Progress, *, training: bool) -> tuple[ImageData, Metric]:
    """`data` with what `model` answers in the place of labels, and what is measured on them.

    Class scores: the top class is the label of every image that is compared on (with `training`, also of those trained on). Other outputs
    are the targets themselves, and their squared relative error is the loss.
    """
    model.to(device)
    with eval_mode(model), torch.inference_mode():
        outputs = forward(model, next(iter(data.train.batches(1))).images.to(device, copy=True))
    if not is_class_scores(outputs):
        dense = copied(model)
        told: dict[str, Any] = {part: Told(getattr(data, part), dense, device) for part in ("train", "validation", "test")}
        return replace(data, **told), RELATIVE_ERROR
    parts = ["train"] if training or not len(data.validation) else []
    parts += [part for part in ("validation", "test") if len(getattr(data, part))]
    changed: dict[str, Any] = {part: _answered(getattr(data, part), model, device, progress) for part in parts}
    return replace(data, **changed), AGREEMENT


class Told(Split):
    """The samples of a split whose targets are the outputs of a network, computed whenever a batch is read."""

    objective = Objective(output_loss, RELATIVE_ERROR)

    def __init__(self, split: Split, model: nn.Module, device: torch.device) -> None:
        self._split, self._model, self._device = split, model, device

    def __len__(self) -> int:
        return len(self._split)

    @property
    def labels(self) -> Tensor:
        """Those of the split."""
        return self._split.labels

    def subset(self, indices: Tensor) -> "Told":
        """As in `Split`."""
        return Told(self._split.subset(indices), self._model, self._device)

    def batches(self, batch_size: int, **options: Any) -> Iterator[Batch]:
        """As in `Split`."""
        for batch in self._split.batches(batch_size, **options):
            with eval_mode(self._model), torch.no_grad():
                outputs = forward(self._model, batch.images.to(self._device, copy=True))
            yield batch._replace(labels=mapped(widened(outputs), Tensor.detach))


def _answered(split: Split, model: nn.Module, device: torch.device, progress: Progress) -> Split:
    found: list[Tensor] = []
    model.to(device)
    with eval_mode(model), torch.inference_mode():
        for batch in progress(split.batches(_BATCH), total=split.number_of_batches(_BATCH), description="answers of the dense network"):
            found.append(forward(model, batch.images.to(device)).argmax(1).cpu())
    return split.relabelled(torch.cat(found).clone())
