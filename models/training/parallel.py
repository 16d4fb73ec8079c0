"""A network in several processes: DistributedDataParallel, and what it leaves open."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fineprune.common.processes import Group

from .frozen import frozen_modules
from .layout import left_as_it_is, trains
from .loop import Task


def shared_network(model: nn.Module, task: Task) -> nn.Module:
    """What computes `model` in the processes of the task's group, whose gradients it averages; the model itself in a group of one.

    All start with the weights and buffers of the first process.
    """
    if task.group.size == 1:
        return model
    masks = {name: value for name, value in model.named_buffers() if value.dtype == torch.bool}
    for mask in masks.values():
        dist.broadcast(mask.view(torch.uint8), 0)
    # They do not change in training: nothing to send around before every step.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(masks))
    return DistributedDataParallel(model, find_unused_parameters=_leaves_parameters_out(model, task))


def share_buffers(model: nn.Module, group: Group) -> None:
    """Give all processes the buffers of the first one that training changes: the running statistics."""
    if group.size == 1:
        return
    for value in model.buffers():
        if value.dtype != torch.bool:
            dist.broadcast(value, 0)


def _leaves_parameters_out(model: nn.Module, task: Task) -> bool:
    """Whether the forward pass uses not every parameter; DistributedDataParallel must be told, and is slower then."""
    two = torch.arange(2) % len(task.data.train)
    images = next(iter(task.data.train.batches(2, indices=two))).images.to(task.device)
    with left_as_it_is(model):
        trains(model, images, frozen_modules(model), nhwc=False)
        return any(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
