"""The trainer: minimises the mean cross-entropy over epochs and ends with the weights that validated best.

A run with an `output` folder can be killed at any moment and started again: it goes on from the last saved batch and ends, for the
same seed, with the same weights as if it had never stopped (bit for bit on a CPU). The caller's global random state is left alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fineprune.common.digests import state_digest
from fineprune.common.processes import joined
from fineprune.common.progress import Progress, Silent

from .checks import check_masking, check_processes, check_request, teacher_for, trainable
from .config import TrainConfig
from .device import private_randomness, reproducible_kernels, resolve_device, resolve_precision
from .distributed.ray_engine import opened as open_ray
from .distributed.simulated import opened as open_simulated
from .frozen import frozen_line
from .interfaces import Beside, DataLike
from .interrupt import deferred_interrupts
from .loop import Engine, Run, Task
from .results import EpochRecord, TrainResult
from .state import run_identity
from .synchronous import opened as open_synchronous

_SERVERS: dict[str, Callable[[Task], AbstractContextManager[Engine]]] = {"simulated": open_simulated, "ray": open_ray}

_ECHO_S = 10.0
"""torchrun passes on to its processes a signal that they may have got already."""


def train(
    model: nn.Module,
    data: DataLike,
    config: TrainConfig,
    *,
    output: Path | None = None,
    device: str | torch.device = "auto",
    progress: Progress = Silent(),  # noqa: B008 - stateless
    on_epoch: Callable[[EpochRecord], None] | None = None,
    teacher: nn.Module | None = None,
) -> TrainResult:
    """Train `model` in place on `data.train`; it ends on `device`, in eval mode, with the weights of the best validation accuracy.

    Parameters that require no gradient stay as they are, and so do `frozen_modules`. Of a wrapped model the network inside is trained.
    output: folder of the resumable state; a finished state returns its result at once. None: nothing is saved.
    teacher: the network to learn from by `config.distill`, as which it is copied; a resumed run must be given the same one.
    Raises RunError for too few samples, a model that does not fit the data, a loss or weight that is not finite, a state of another
    run or an unwritable folder; UsageError for settings that cannot be met here. On SIGINT or SIGTERM the step that runs is
    finished, the state saved, and KeyboardInterrupt raised with a message that says where it stopped.

    In the processes of `torchrun`, or of a process group that the caller has initialised, each process calls this and computes its share
    of every batch; the first one writes and logs.
    """
    with opened(model, data, config, output=output, device=device, progress=progress, beside=Beside(teacher=teacher)) as run:
        return run.finish(on_epoch)


@contextmanager
def opened(
    model: nn.Module,
    data: DataLike,
    config: TrainConfig,
    *,
    output: Path | None = None,
    device: str | torch.device = "auto",
    progress: Progress = Silent(),  # noqa: B008 - stateless
    beside: Beside = Beside(),  # noqa: B008 - immutable
) -> Iterator[Run]:
    """`train` up to its first step: a run to `finish`, for those who look into its engine or have more beside it.

    Arguments and errors are those of `train`.
    """
    with ExitStack() as stack:
        group = stack.enter_context(joined())
        progress = group.speaker(progress)
        model = trainable(model, progress)
        where = resolve_device(device)
        dtype = resolve_precision(config.precision, where)
        check_request(model, data, config, progress)
        check_processes(model, data, config, group.size)
        if beside.masking is not None:
            check_masking(config)
        if line := frozen_line(model):
            progress.log(line)
        teacher, config = teacher_for(beside.teacher, config, data)
        learned_from = {} if teacher is None else {"teacher": state_digest(teacher.state_dict().items())}
        names = run_identity(model, data, config, {**beside.identity, **learned_from})
        rest: dict[str, Any] = {"output": output, "identity": names, "progress": progress, "group": group}
        task = Task(model=model, teacher=teacher, masking=beside.masking, data=data, config=config, device=where, dtype=dtype, **rest)
        open_engine: Callable[[Task], AbstractContextManager[Engine]]
        open_engine = open_synchronous if config.asynchronous is None else _SERVERS[config.asynchronous.engine]
        stack.enter_context(private_randomness(where))
        stack.enter_context(reproducible_kernels())
        engine = stack.enter_context(open_engine(task))
        interrupts = stack.enter_context(deferred_interrupts(_ECHO_S if group.size > 1 else 0.0))
        yield Run(engine=engine, data=data, config=config, progress=progress, interrupts=interrupts, group=group)
