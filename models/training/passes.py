"""The forward and backward pass of anybody's network, and what to say where one fails or gives something else than class scores."""

from typing import Any

import torch
from torch import Tensor, nn

from fineprune.common.errors import FinepruneError, RunError, said_by
from fineprune.common.inputs import Inputs, Structured, answer, mapped, written


def forward(model: nn.Module, x: Inputs) -> Any:
    """answer(model, x), where a failure becomes a RunError that names its cause where that is known, else the images' shape."""
    try:
        return answer(model, x)
    except FinepruneError:
        raise
    except torch.OutOfMemoryError as error:
        raise RunError(f"{x.device} has too little memory for {len(x)} images at a time; use a smaller batch size") from error
    except Exception as error:  # the network's own code may raise anything
        if isinstance(x, Structured):
            raise RunError(f"forward failed on {written(x)}: {said_by(error)}") from error
        remedy = _why_unfit(model, x) or "build it for such images"
        raise RunError(f"the model failed on {written(x)}: {said_by(error)}; {remedy}") from error


def backward(loss: Tensor, images: int) -> None:
    """loss.backward(), where a failure becomes a RunError."""
    try:
        loss.backward()
    except torch.OutOfMemoryError as error:
        raise RunError(f"{loss.device} has too little memory for {images} images at a time; use a smaller batch size") from error
    except Exception as error:  # as above
        raise RunError(f"no gradient can be computed through the model's forward: {said_by(error)}; change that operation") from error


def _why_unfit(model: nn.Module, x: Tensor) -> str | None:
    """What to do about weights that images cannot be computed with."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype != x.dtype:
            kind = str(weight.dtype).removeprefix("torch.")
            return f"{name} is {kind} and the images are {str(x.dtype).removeprefix('torch.')}: call .float() on the network first"
    return None


def widened(outputs: Any) -> Any:
    """Outputs of autocast in float32, in which losses are computed."""
    return mapped(outputs, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def check_logits(logits: Any, labels: Tensor) -> None:
    """RunError where the model's output is not one score per class for each of the `labels` (on the CPU)."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != labels.shape[0]:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RunError(f"the model gave {got} for {labels.shape[0]} images; a classifier gives one row of class scores for each")
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise RunError(f"the labels are {labels.dtype} of shape {tuple(labels.shape)}; give one whole number (int64) for each image")
    if int(labels.min()) < 0:
        raise RunError(
            f"the data hold class {int(labels.min())}; classes are numbered from 0, and images without labels serve `compress --epochs 0`"
        )
    if int(labels.max()) >= logits.shape[1]:
        raise RunError(f"the model has {logits.shape[1]} outputs but the data hold class {int(labels.max())}; build it with more classes")
