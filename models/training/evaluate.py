"""Accuracy and loss of a model over a split, in float32 and eval mode."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import RunError
from fineprune.common.inputs import numbers
from fineprune.common.processes import Group
from fineprune.common.progress import Progress, Silent

from ..objective import Tally, moved, objective_of
from .device import resolve_device
from .interfaces import BatchLike, SplitLike
from .passes import check_logits, forward, widened


class NonFiniteLossError(RunError):
    """The model gives a loss that is NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results over `samples` images; accuracies are fractions in [0,1]."""

    accuracy: float
    """Or the figure of the user's metric."""
    top5: float | None
    """None where there are fewer than six classes."""
    loss: float
    """Mean cross-entropy in nats, or the user's."""
    samples: int

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    split: SplitLike,
    *,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    workers: int = 0,
    progress: Progress = Silent(),  # noqa: B008 - stateless
    description: str = "evaluate",
    group: Group = Group(),  # noqa: B008 - immutable
) -> Evaluation:
    """Run `model` (moved to `device`) over every image of `split`. RunError for an empty split or a loss that is not finite.

    batch_size: images at a time; None: 256, and fewer of images larger than 64x64, which bounds the memory.
    group: processes of which each measures its share of the images; all call this, and get the result of the whole.
    """
    if len(split) == 0:
        raise RunError(f"{description}: the split has no images; nothing to measure")
    where = resolve_device(device)
    model.to(where)
    batch_size = batch_size or _images_at_a_time(split)
    loss, correct, top5, samples, classes = 0.0, 0.0, 0, 0, 0
    objective = objective_of(split)
    tally = None if objective is None else Tally(objective.metric)
    whole = objective is not None and objective.metric.of_set
    group = Group() if whole else group  # such a figure cannot be put together of those of parts: each process measures all
    with eval_mode(model), torch.inference_mode():
        own = None if group.size == 1 else group.part(torch.arange(len(split)))
        batches = split.batches(batch_size, workers=workers, indices=own)
        for batch in progress(batches, total=split.number_of_batches(batch_size, own), description=description):
            logits = forward(model, batch.images.to(where, copy=True))  # a network may write to its input
            if objective is not None and tally is not None:
                outputs, targets, count = widened(logits), moved(batch.labels, where), len(batch.indices)
                loss += float(objective.losses(outputs, targets, count).sum())
                tally.add(outputs, targets, count)
                correct, samples = tally.sum, samples + count
                continue
            check_logits(logits, batch.labels)
            logits, labels = logits.float(), batch.labels.to(where)
            classes = logits.shape[1]
            best = logits.topk(min(5, classes), dim=1).indices == labels[:, None]
            sums = torch.stack([F.cross_entropy(logits, labels, reduction="sum"), best[:, 0].sum(), best.sum()]).tolist()
            loss, correct, top5, samples = loss + sums[0], correct + sums[1], top5 + int(sums[2]), samples + len(labels)
    sums = group.total(torch.tensor([loss, correct, top5, samples, classes > 5], dtype=torch.float64)).tolist()
    loss, correct, (top5, samples, many) = sums[0], sums[1], map(int, sums[2:])
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"{description}: the model's loss is {loss}; its weights or activations are not finite, train or load it again"
        )
    accuracy = tally.value if tally is not None and whole else correct / samples
    return Evaluation(accuracy=accuracy, top5=top5 / samples if many else None, loss=loss / samples, samples=samples)


class PartOf:
    """The samples `indices` (int64) of a split, to be measured as a split of its own; whatever else is asked for is the split's."""

    def __init__(self, split: SplitLike, indices: Tensor) -> None:
        self._split, self._indices = split, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._split, name)

    def number_of_batches(self, batch_size: int, indices: Tensor | None = None) -> int:
        """Of one pass over the part, or over the samples `indices` of it."""
        return self._split.number_of_batches(batch_size, self._indices if indices is None else self._indices[indices])

    def batches(self, batch_size: int, *, indices: Tensor | None = None, **settings: Any) -> Iterator[BatchLike]:
        """As the split's; the batches hold positions in the split."""
        return self._split.batches(batch_size, indices=self._indices if indices is None else self._indices[indices], **settings)


_MOST_IMAGES, _MOST_NUMBERS = 256, 256 * 3 * 64 * 64
"""Of a batch: what a ResNet-18 keeps of 224x224 images then takes some 150 MB, and not 2 GB."""


def _images_at_a_time(split: SplitLike) -> int:
    image = next(iter(split.batches(1))).images
    return max(1, min(_MOST_IMAGES, _MOST_NUMBERS // max(1, numbers(image))))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; each module's own flag comes back after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
