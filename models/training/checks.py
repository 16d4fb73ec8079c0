"""What a training is refused for before it starts."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from fineprune.common.copies import copied
from fineprune.common.errors import RunError, UsageError
from fineprune.common.inputs import floats, structure
from fineprune.common.progress import Progress, Silent
from fineprune.common.wrappers import check_network, unwrapped

from ..objective import Objective, objective_of
from .config import TrainConfig
from .features import stage_ends
from .interfaces import DataLike, SplitLike
from .passes import check_logits, forward
from .sampling.policies import make_policy
from .sampling.time_model import trained_batches
from .step import first_nonfinite


def trainable(model: nn.Module, progress: Progress) -> nn.Module:
    """What is trained: the network inside of wrappers, unless they spread the work over devices or processes.

    UsageError for what is no network that can be trained.
    """
    if any(_spreads(module) for module in model.modules()):
        return model
    model = unwrapped(model, progress)
    check_network(model)
    return model


def check_request(
    model: nn.Module,
    data: DataLike,
    config: TrainConfig,
    progress: Progress = Silent(),  # noqa: B008 - stateless
) -> None:
    """RunError for a model or data that cannot be trained, UsageError for settings that do not fit them; lines of the log for doubts."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            raise RunError(f"{name} has no shape yet (a lazy module); call the network once on a sample before")
        if value.is_inference():
            raise RunError(f"{name} was made under torch.inference_mode(), which training cannot change; build the network outside of it")
    broken = first_nonfinite(model)
    if broken is not None:
        raise RunError(f"{broken} of the given model is not finite; build it or load its weights again before training")
    images = len(data.train)
    if images < 2:
        raise RunError(f"the training split has {images} images; training needs at least 2")
    if config.batch_size == 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UsageError("batch_size 1 leaves BatchNorm no variance to normalise with; use at least 2")
    check_settings(data, config)
    check_task(objective_of(data.train), config)
    if images < config.batch_size:
        progress.log(f"batch_size {config.batch_size} is more than the {images} training images: every epoch is one step of them all")
    labels = None if objective_of(data.train) else getattr(data.train, "labels", None)
    if isinstance(labels, torch.Tensor) and labels[0] >= 0 and bool((labels == labels[0]).all()):
        progress.log(f"warning: all {images} training images are of class {int(labels[0])}; the network learns to answer nothing else")


def teacher_for(teacher: nn.Module | None, config: TrainConfig, data: DataLike) -> tuple[nn.Module | None, TrainConfig]:
    """A copy of the teacher, in eval mode, after one image showed that it answers, and the config with the layers that are matched.

    UsageError where only one of the two asks for distillation.
    """
    if (teacher is None) != (config.distill is None):
        given, missing = ("distill", "teacher") if teacher is None else ("a teacher", "config's distill")
        raise UsageError(f"{given} is given, but no {missing}; distillation needs both, as the fine-tuning of a compression has them")
    if teacher is None or config.distill is None:
        return None, config
    teacher = copied(unwrapped(teacher)).eval()
    if broken := first_nonfinite(teacher):
        raise RunError(f"{broken} of the teacher is not finite; load its weights again")
    with torch.inference_mode():
        batch = next(iter(data.train.batches(1)))
        outputs = forward(teacher.cpu(), batch.images.clone())
        if objective_of(data.train) is None:
            check_logits(outputs, batch.labels.clamp(min=0))
        elif not floats(outputs):
            raise RunError(f"the teacher gives {structure(outputs)}, in which no floating-point number is; leave distill out")
    if config.distill.features and not config.distill.layers:
        config = replace(config, distill=replace(config.distill, layers=stage_ends(teacher, batch.images)))
    return teacher, config


def check_masking(config: TrainConfig) -> None:
    """UsageError where masks could not come while a network trains by `config`."""
    if config.asynchronous is not None and config.asynchronous.engine == "ray":
        raise UsageError(
            "masks that come while the network trains need one process: take the plain trainer or engine=simulated, or mask at once"
        )


def check_processes(model: nn.Module, data: DataLike, config: TrainConfig, processes: int) -> None:
    """UsageError for what so many processes cannot train together."""
    if processes == 1:
        return
    if config.asynchronous is not None:
        raise UsageError("a parameter server starts its own workers: train in one process, or without a parameter server in several")
    if _spreads(model):
        raise UsageError("the model is shared between processes or devices already; hand over the network itself")
    least = 2 * processes if any(isinstance(module, _BatchNorm) for module in model.modules()) else processes
    if config.batch_size < least:
        why = " (BatchNorm needs two images in each)" if least > processes else ""
        raise UsageError(f"batch_size {config.batch_size} is too small for {processes} processes{why}; use at least {least}")
    if len(data.train) < 2 * processes:
        raise RunError(f"the training split has {len(data.train)} images; {processes} processes need at least {2 * processes}")


def _spreads(model: nn.Module) -> bool:
    return isinstance(model, DistributedDataParallel) or (isinstance(model, nn.DataParallel) and len(model.device_ids) > 1)


def check_settings(data: DataLike, config: TrainConfig) -> None:
    """UsageError for a schedule or a policy that does not fit the data: what can be known before there is a model."""
    _check_schedule(data, config)
    make_policy(config.policy, samples=len(data.train), epochs=config.epochs, seed=config.seed, batch_size=config.batch_size)
    if config.policy.name != "none" or config.record_losses:
        _check_indices(data.train, config.policy.name)


def check_engine(config: TrainConfig) -> None:
    """UsageError where the config asks for Ray, or for a cluster of it, that is not there."""
    if config.asynchronous is not None and config.asynchronous.engine == "ray":
        from .distributed.ray_engine import check_ray

        check_ray(config.asynchronous.address)


def _check_schedule(data: DataLike, config: TrainConfig) -> None:
    if config.schedule not in ("plateau", "auto"):
        return
    followed = config.auto_lr.split if config.schedule == "auto" else "validation"
    if not len(getattr(data, followed, ())):
        raise UsageError(
            f"the {config.schedule} schedule follows the {followed} loss and there are no {followed} images; use another schedule"
        )
    rule = config.rate_rule
    interval, parts = rule.interval or 0, min(rule.parts or 1, trained_batches(len(data.train), config.batch_size))
    if config.schedule == "auto" and 2 * interval >= parts * config.epochs:
        each = f" of {parts} losses each" if parts > 1 else ""
        raise UsageError(
            f"the auto schedule compares the last {2 * interval} losses and there are {config.epochs} epochs{each}; "
            f"lower auto_lr's interval={interval}"
        )


def _check_indices(split: SplitLike, policy: str) -> None:
    """A policy visits some samples only, and must be told which ones a batch holds: ask for one and look."""
    asked = torch.tensor([len(split) - 1])
    try:
        batch = next(iter(split.batches(1, indices=asked)))
        told = torch.as_tensor(batch.indices)
    except (TypeError, AttributeError, StopIteration) as error:
        raise UsageError(f"policy {policy} needs data whose batches take and hold `indices`; the training split fails ({error})") from error
    if told.tolist() != asked.tolist():
        raise UsageError(f"policy {policy} asked the training split for sample {asked.tolist()} and got {told.tolist()}; fix its `indices`")


def check_task(objective: Objective | None, config: TrainConfig) -> None:
    """UsageError for settings that rest on class scores or on the loss of each sample, where `objective` is a user's task."""
    if objective is None:
        return
    asked = {
        "label_smoothing": bool(config.label_smoothing),
        "asynchronous": config.asynchronous is not None,
        "policy": config.policy.name != "none",
        "record_losses": config.record_losses,
    }
    if wrong := [name for name, is_asked in asked.items() if is_asked]:
        raise UsageError(f"{' and '.join(wrong)} belong to classifiers under cross-entropy; leave that out with a loss of your own")
