"""Samples of whatever form: what `compress` trains on, what a file in int8 is calibrated on, what outputs are compared on."""

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fineprune.common.errors import UsageError
from fineprune.common.inputs import Forward, Structured, one, structure, tensors
from fineprune.common.progress import Progress, Silent
from fineprune.models.data import ImageData, load_data
from fineprune.models.data.given import first_inputs, given_data, has_classes, is_given, without_labels
from fineprune.models.objective import Objective, metric_of

from .arguments import check_arguments


def data_of(data: Any, *, progress: Progress, **of_samples: Any) -> ImageData:
    """The data set that `data` is, or names, or holds the samples of; UsageError for what is neither.

    of_samples: arguments of `given_data`.
    """
    forward = of_samples.get("forward")
    if forward is not None and not callable(forward):
        raise UsageError(f"forward is a function of (model, inputs), got {forward!r:.80}")
    if is_given(data):
        return given_data(data, **of_samples, progress=progress)
    check_arguments(data=data)
    for name, value in of_samples.items():
        if value is not None and name != "seed":
            name = {"objective": "loss"}.get(name, name)
            raise UsageError(f"{name} belongs to samples that are given in Python; a data set has its own: leave {name} out")
    return load_data(data) if isinstance(data, str) else data


def calibration_data(samples: Any, metric: Any) -> ImageData:
    """Data for an export in int8: most of `samples` calibrate, a tenth measures what it costs.

    metric: a user's, of (outputs, targets). Targets that are no classes are left out without one.
    """
    if is_given(samples) and metric is None and not has_classes(samples, "samples"):
        samples = without_labels(samples, "samples")
    measure = None if metric is None else metric_of(metric)
    objective = None if measure is None else Objective(_untrained, measure)
    return data_of(samples, validation=None, test=None, seed=0, objective=objective, progress=Silent())


def _untrained(outputs: Any, targets: Any) -> Any:
    """The loss of data that are only measured on."""
    raise UsageError("data for an export in int8 have no loss; nothing is trained on them")


def compared(samples: Any, count: int) -> Tensor:
    """The first `count` inputs of samples in any form, as they come; of a data set of ours, those held out."""
    if isinstance(samples, ImageData):
        return held_out(samples, count)
    return one(first_inputs(samples, count, "samples"))


def called_on(samples: Any, count: int, forward: Forward) -> Structured:
    """Samples that a network is called on by `forward`: the first `count` of a DataLoader or a Dataset, or inputs as they are."""
    if not callable(forward) or samples is None:
        raise UsageError("forward is a function of (model, samples), and belongs to samples=, which it is called on")
    if isinstance(samples, DataLoader | Dataset):
        samples = first_inputs(samples, count, "samples", forward)
        return samples if isinstance(samples, Structured) else Structured(samples, len(samples), forward)
    rows = {tensor.shape[:1] for tensor in tensors(samples)}
    if len(rows) != 1 or rows & {(), (0,)}:
        raise UsageError(f"samples are {structure(samples)}: with a forward, tensors with a first axis of samples, as many of each")
    return Structured(samples, rows.pop()[0], forward).to("cpu")


def held_out(data: ImageData, count: int) -> Tensor:
    """The first `count` inputs of the split that accuracies refer to."""
    if count < 1:
        raise UsageError(f"the number of samples to compare is at least 1, got {count}")
    split = next((s for s in (data.test, data.validation, data.train) if len(s)), None)
    if split is None:
        raise UsageError(f"the data set {data.spec} is empty; give --data (in Python: samples)")
    return one(next(iter(split.batches(min(count, len(split))))).images)
