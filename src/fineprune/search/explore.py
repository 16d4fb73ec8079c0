"""What a search looks at, for people and for other machines: what each layer costs at each level, and how long it takes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.copies import working_copy
from fineprune.common.errors import UsageError
from fineprune.common.files import check_writable, write_json
from fineprune.common.inputs import Structured, one
from fineprune.common.progress import Lines, Progress
from fineprune.compressor.config import PruneConfig, prune_config
from fineprune.compressor.prune import CalibrationRun, prunable
from fineprune.compressor.reconstruct.run import ReconstructConfig
from fineprune.compressor.search.levels import DENSE, Level, levels_of, masks_of_levels
from fineprune.models.data import ImageData
from fineprune.models.objective import Metric, task_of
from fineprune.models.training.device import resolve_device
from fineprune.models.zoo import ModelSpec

from ..arguments import check_arguments, check_named, check_progress
from ..job import PICKED_SAMPLES, ratio_settings
from ..networks import open_model
from ..samples import data_of
from ..unlabelled import answered
from .run import Search
from .target import Target
from .times import LayerTimes, Machine


def sensitivity(
    model: nn.Module | ModelSpec | str, data: Any, *, validation: Any = None, test: Any = None,
    loss: Callable[[Any, Any], Any] | None = None, metric: Metric | Callable[[Any, Any], Any] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    checkpoint: Path | str | None = None, model_args: Mapping[str, Any] | None = None,
    preset: str = "obs", ffp: float | Mapping[str, Any] = 0.0, fwp: float | Mapping[str, Any] = 0.0,
    include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None,
    levels: Sequence[Any] | None = None, int8: bool = False, reconstruct: bool = True, times: bool = True,
    samples: int = PICKED_SAMPLES, measured: int | None = None, seed: int = 0, output: Path | str | None = None,
    device: str = "auto", progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What each layer costs at each level while all others stay dense: error, accuracy (or the metric), loss and milliseconds.

    Arguments that `compress` has, too, are as there; ffp and fwp give settings of the ranking, no ratios. levels: weight ratios, or pairs
    (blocks, weights). reconstruct: whether the kept weights are refitted. times: whether layers are timed on this machine, in float32 or
    int8. measured: held-out samples that answers are compared on (512; fewer of large images). output: a JSON file that keeps rows, from
    which an interrupted call goes on; what it holds of this very question is not measured again. Returned is what it holds. UsageError for
    other arguments.
    """
    check_arguments(checkpoint=checkpoint, model_args=model_args, samples=samples)
    check_progress(progress)
    check_named(model, checkpoint=checkpoint, model_args=model_args)
    if output is not None:
        check_json_target(output)
    progress = progress or Lines()
    layers = {"include": include, "exclude": exclude}
    config = prune_config(preset, ffp=ratio_settings("ffp", ffp, **layers), fwp=ratio_settings("fwp", fwp, **layers))
    given: dict[str, Any] = {"validation": validation, "test": test, "seed": seed, "objective": task_of(loss, metric), "forward": forward}
    loaded = data_of(data, **given, progress=progress)
    spec = ModelSpec(name=model, args=dict(model_args or {})) if isinstance(model, str) else model
    module = spec if isinstance(spec, nn.Module) else open_model(spec, checkpoint=checkpoint, data=loaded, progress=progress).model
    target = Target(int8=int8, levels=levels_of(levels))
    settings: dict[str, Any] = {"config": config, "target": target, "refit": ReconstructConfig() if reconstruct else None}
    return explored(
        module,
        loaded,
        settings,
        samples=samples,
        measured=measured,
        seed=seed,
        times=times,
        output=output,
        device=device,
        progress=progress,
    )


def check_json_target(path: Path | str) -> None:
    """UsageError where `path` is something else than a JSON file, RunError where it cannot be written."""
    path = Path(path)
    if path.is_dir() or (path.exists() and path.suffix != ".json"):
        raise UsageError(f"{path} exists and is not named as a JSON file; give another name such as {path.with_suffix('.json')}")
    check_writable(path)


def explored(
    model: nn.Module,
    data: ImageData,
    settings: Mapping[str, Any],
    *,
    output: Path | str | None,
    device: str,
    progress: Progress,
    **counts: Any,
) -> dict[str, Any]:
    """`sensitivity` of a network that is open; settings: config, target and refit of a `Search`; counts: samples, measured, seed, times."""
    model, where = working_copy(model, progress).eval(), resolve_device(device)
    if not data.labelled:
        data, _ = answered(data, model, where, progress, training=False)
    run = CalibrationRun(
        source=data.train,
        input_shape=data.shape,
        config=CalibrationConfig(samples=counts["samples"], seed=counts["seed"]),
        device=where,
        progress=progress,
    )
    search = Search(
        model=model,
        data=data,
        run=run,
        rows=None if output is None else Path(output),
        measured=counts["measured"],
        progress=progress,
        **settings,
    )
    search.errors.measure()
    facts = search.errors.to_json()
    if counts["times"] and not isinstance(data.shape, Structured):
        taken = search.times
        for row in facts["rows"]:
            seconds = taken.layers.get(row["layer"], {})
            row |= {"milliseconds": _ms(seconds.get(Level(**row["level"]))), "milliseconds_dense": _ms(seconds.get(DENSE))}
    if output is not None:
        write_json(output, facts)
    return facts


def profile(
    model: nn.Module | ModelSpec | str,
    input_shape: Sequence[int] | None = None,
    *,
    data: Any = None,
    checkpoint: Path | str | None = None,
    model_args: Mapping[str, Any] | None = None,
    fwp: Mapping[str, Any] | None = None,
    levels: Sequence[Any] | None = None,
    int8: bool = False,
    threads: int = 1,
    batch: int = 1,
    output: Path | str | None = None,
    progress: Progress | None = None,
) -> LayerTimes:
    """How long each layer takes on this machine at each level, for a search elsewhere (`compress(times=output)`).

    Weights are dropped by their size, for which no data are needed: how long a layer takes depends on how many stay, and hardly on which.
    fwp: settings of FWPConfig, such as {"unit": "quad"}, the default in int8. data: samples that calibrate int8, and give input_shape
    (C,H,W); without them the grids are those of noise. UsageError for other arguments, and for levels with blocks.
    """
    check_arguments(checkpoint=checkpoint, model_args=model_args)
    check_progress(progress)
    check_named(model, checkpoint=checkpoint, model_args=model_args)
    if output is not None:
        check_json_target(output)
    progress = progress or Lines()
    target = Target(int8=int8, threads=threads, batch=batch, levels=levels_of(levels))
    if any(level.ffp for level in target.levels):
        raise UsageError("levels with blocks need data to rank them; profile weights alone")
    unit = (fwp or {}).get("unit") or ("quad" if int8 else "weight")
    config = prune_config("taylor", fwp={**(fwp or {}), "criterion": "magnitude", "unit": unit, "ratio": 0.5})
    loaded = None
    if data is not None:
        loaded = data_of(data, validation=None, test=None, seed=0, objective=None, forward=None, progress=progress)
    shape = tuple(input_shape or (loaded.input_shape if loaded else ()))
    spec = ModelSpec(name=model, args=dict(model_args or {})) if isinstance(model, str) else model
    if isinstance(spec, ModelSpec):
        network = open_model(spec, checkpoint=checkpoint, data=loaded, input_shape=shape or None, progress=progress)
        spec, shape = network.model, network.input_shape
    if len(shape) != 3:
        raise UsageError("the size of an input is not known; give input_shape=(C, H, W), or data")
    found = _profiled(working_copy(spec, progress).eval(), shape, config, target, loaded, progress)
    if output is not None:
        found.save(output)
    return found


def _profiled(
    model: nn.Module, shape: tuple[int, ...], config: PruneConfig, target: Target, data: ImageData | None, progress: Progress
) -> LayerTimes:
    run = CalibrationRun(source=_NoSamples(), input_shape=shape, progress=progress)
    sites, _ = prunable(model, config, run)
    masks = masks_of_levels(model, config, run, sites, target.levels)
    if data is None:
        samples = np.random.default_rng(0).standard_normal((16, *shape), dtype=np.float32)
    else:
        samples = one(next(iter(data.train.batches(16))).images).numpy()
    return Machine(model, shape, target, samples, progress).times(masks, sites, config.fwp.unit)


class _NoSamples:
    """A source for methods that read none."""

    def __len__(self) -> int:
        return 0

    def batches(self, batch_size: int, **options: Any) -> Any:
        """None."""
        return iter(())


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
