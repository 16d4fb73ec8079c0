"""How good a network is on samples: by accuracy, or by a user's metric."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fineprune.common.errors import UsageError
from fineprune.common.inputs import Forward, one
from fineprune.common.progress import Lines, Progress, Silent
from fineprune.compressor.bundle import Bundle
from fineprune.export.runtimes import Runtime
from fineprune.models.data.given import is_given
from fineprune.models.objective import ACCURACY, Metric, Tally, objective_of, task_of
from fineprune.models.training.evaluate import Evaluation
from fineprune.models.training.evaluate import evaluate as measured

from .arguments import check_arguments, check_progress
from .deployment import opened
from .samples import data_of


def evaluate(
    network: nn.Module | Bundle | Path | str,
    data: Any,
    *,
    loss: Callable[[Any, Any], Any] | None = None,
    metric: Metric | Callable[[Any, Any], Any] | None = None,
    forward: Forward | None = None,
    model: nn.Module | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy (or the figure of `metric`) and loss of a network, in float32 and eval mode.

    network: a module, as it is, or a bundle, with its dense architecture as `model` where the manifest names none. data: samples in a form
    that `compress` takes, all of which are measured on, or a data set or its spec, of which the test split is, or that of validation.
    loss, metric, forward: as in `compress`. UsageError for other arguments, RunError for labels that fit no output.
    """
    check_progress(progress)
    if not isinstance(network, nn.Module):
        check_arguments(bundle=network, architecture=model)
        network = opened(network, model).model
    elif model is not None:
        raise UsageError("model belongs to a bundle; this network is an nn.Module: leave model out")
    validation = 0 if is_given(data) else None
    given: dict[str, Any] = {"validation": validation, "test": None, "seed": 0, "objective": task_of(loss, metric), "forward": forward}
    loaded = data_of(data, **given, progress=Silent())
    split = next(split for split in (loaded.test, loaded.validation, loaded.train) if len(split) or split is loaded.train)
    return measured(network, split, device=device, progress=progress or Lines())


_BATCH = 100


def figure_of(runtime: Runtime, split: Any, *, progress: Progress) -> float:
    """Accuracy (or the user's figure) of a file on a split of a data set, by what a runtime answers to all of it."""
    objective = objective_of(split)
    tally = Tally(ACCURACY if objective is None else objective.metric)
    runtime.load(torch.get_num_threads())
    try:
        for batch in progress(split.batches(_BATCH), total=split.number_of_batches(_BATCH), description=f"accuracy of {runtime.name}"):
            outputs = torch.from_numpy(runtime.run(one(batch.images).numpy()))
            tally.add(outputs, batch.labels, len(outputs))
    finally:
        runtime.close()
    return tally.value
