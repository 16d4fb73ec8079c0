"""The Python function of `fineprune front`."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune.common.errors import UsageError
from fineprune.compressor.bundle import Bundle
from fineprune.models.training.config import TrainConfig

from ..arguments import check_arguments
from ..asked import TARGET
from ..compression import compress, ready_for
from .sweep import Sweep, wanted

if TYPE_CHECKING:
    from fineprune.export.benchmark import BenchmarkConfig

PRUNE = (0.3, 0.5, 0.7, 0.8)
EPOCHS, ROUNDS = 2, 25
NOT_HERE = ("prune", "method", "rate", *TARGET, "front", "point", "statistics", "compare_dense", "output")
"""Arguments of `compress` that say what a front says itself, or that it has no use for."""


def front(
    model: Any,
    data: Any,
    output: Path | str,
    *,
    prune: Sequence[float] = PRUNE,
    units: Sequence[str] = (),
    int8: bool = True,
    config: "BenchmarkConfig | None" = None,
    **settings: Any,
) -> dict[str, Any]:
    """Compress one network in several ways, time all beside each other, and tell which no other beats.

    model, data: as `compress` takes them, but for bundles. output: a folder, in which finished compressions are kept, so that an
    interrupted call goes on, and further ratios are added; with other settings it is refused. prune: ratios of multiply-adds; units: of
    weights, such as "weight" and "quad", every one at every ratio. int8: whether files in eight-bit integers are timed, too. config: a
    fineprune.export.benchmark.BenchmarkConfig of one batch size and one number of threads. settings: any other arguments of `compress`,
    such as checkpoint, epochs (2 where they are left open), preset, exclude, device and progress.

    Returned is what OUTPUT/front.json holds: points with name, point (a number, for `compress(front=..., point=...)`), pruned,
    milliseconds, accuracy and accuracy_before the fine-tuning (or the user's metric), macs, bytes, int8, settings, and whether they are in
    front; machine and settings. UsageError for other arguments.
    """
    known = inspect.signature(compress).parameters
    for name in settings:
        if name not in known or name in NOT_HERE:
            raise UsageError(f"front takes no {name}; it takes prune, units, int8, config and what `compress` takes beside ratios")
    if isinstance(model, Bundle):
        raise UsageError("a bundle is compressed already; front begins with the dense network")
    check_arguments(output=output)
    training = settings.get("finetune") or {}
    if settings.get("epochs") is None and not isinstance(training, TrainConfig) and "epochs" not in training:
        settings["epochs"] = EPOCHS
    given = {name: parameter.default for name, parameter in known.items()}
    ready = ready_for({**given, **settings, "model": model, "data": data})
    if any(part.get("ratio") for part in (ready.asked.ffp, ready.asked.fwp)):
        raise UsageError("front takes its ratios as prune; leave those of ffp and fwp out")
    sweep = Sweep(
        model=ready.model,
        spec=ready.spec,
        data=ready.data,
        asked=ready.asked,
        folder=Path(output),
        config=timing(config),
        int8=int8,
        device=settings.get("device", "auto"),
        progress=ready.progress,
    )
    return sweep.run(wanted(ready.asked, prune, units))


def timing(config: "BenchmarkConfig | None") -> "BenchmarkConfig":
    """`config`, or `ROUNDS`; UsageError where it has several batch sizes or numbers of threads, of which each has a front of its own."""
    from fineprune.export.benchmark import BenchmarkConfig

    config = config or BenchmarkConfig(rounds=ROUNDS)
    if not isinstance(config, BenchmarkConfig) or len(config.batch_sizes) != 1 or len(config.threads) != 1:
        raise UsageError(f"config is a BenchmarkConfig of one batch size and one number of threads, got {config!r:.120}")
    return config
