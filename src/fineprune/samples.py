"""Samples of whatever form: what `compress` trains on, what a file in int8 is calibrated on, what outputs are compared on."""

from typing import Any

from torch import Tensor

from fineprune.common.errors import UsageError
from fineprune.common.progress import Progress, Silent
from fineprune.models.data import ImageData, load_data
from fineprune.models.data.given import first_inputs, given_data, has_classes, is_given, without_labels
from fineprune.models.objective import Metric, Objective, task_of

from .arguments import check_arguments


def data_of(data: Any, *, validation: Any, test: Any, seed: int, objective: Objective | None, progress: Progress) -> ImageData:
    """The data set that `data` is, or names, or holds the samples of; UsageError for what is neither."""
    if is_given(data):
        return given_data(data, validation=validation, test=test, seed=seed, objective=objective, progress=progress)
    check_arguments(data=data)
    for name, value in (("validation", validation), ("test", test), ("loss", objective)):
        if value is not None:
            raise UsageError(f"{name} belongs to samples that are given in Python; a data set has its own: leave {name} out")
    return load_data(data) if isinstance(data, str) else data


def calibration_data(samples: Any, metric: Any) -> ImageData:
    """Data for an export in int8: most of `samples` calibrate, a tenth measures what it costs.

    metric: a user's, of (outputs, targets). Targets that are no classes are left out without one.
    """
    if is_given(samples) and metric is None and not has_classes(samples, "samples"):
        samples = without_labels(samples, "samples")
    objective = None if metric is None else task_of(metric.function if isinstance(metric, Metric) else metric, metric)
    return data_of(samples, validation=None, test=None, seed=0, objective=objective, progress=Silent())


def compared(samples: Any, count: int) -> Tensor:
    """The first `count` inputs of samples in any form, as they come; of a data set of ours, those held out."""
    if isinstance(samples, ImageData):
        return held_out(samples, count)
    return first_inputs(samples, count, "samples")


def held_out(data: ImageData, count: int) -> Tensor:
    """The first `count` inputs of the split that accuracies refer to."""
    if count < 1:
        raise UsageError(f"the number of samples to compare is at least 1, got {count}")
    split = next((s for s in (data.test, data.validation, data.train) if len(s)), None)
    if split is None:
        raise UsageError(f"the data set {data.spec} is empty; give --data (in Python: samples)")
    return next(iter(split.batches(min(count, len(split))))).images
