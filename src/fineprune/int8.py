"""Eight-bit files: which images calibrate and judge them, and what they cost in accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fineprune.common.errors import UsageError
from fineprune.common.figures import written
from fineprune.common.inputs import Structured, one
from fineprune.common.progress import Progress
from fineprune.export.flat import arrays_of, first
from fineprune.models.data import ImageData, Split
from fineprune.models.data.images import Batch
from fineprune.models.objective import ACCURACY, AGREEMENT, RELATIVE_ERROR, Metric, Tally, is_class_scores, objective_of

if TYPE_CHECKING:
    from fineprune.compressor.bundle import Bundle
    from fineprune.export.int8.quantiser import Int8Config, Judge, Quantiser

JUDGED = 2048
"""Images on which `max_drop` is measured, at most."""
_BATCH = 64
_HELD = 10
"""One in so many samples that a network is called on measures, the others calibrate."""


@dataclass(frozen=True, kw_only=True)
class Int8Export:
    """What an export in int8 takes: its settings, and the data whose training images calibrate it, or the samples that a network is called
    on by its user's forward."""

    config: "Int8Config"
    data: ImageData | Structured

    def __post_init__(self) -> None:
        if not isinstance(self.data, Structured):
            return
        if len(self.data) < 2:
            raise UsageError("int8 needs samples that calibrate and others that measure, got one; give more")
        if self.config.max_drop is not None:
            raise UsageError("max_drop is of a score, and the outputs of a network with a forward have none; leave it out")


def int8_config(given: Any) -> "Int8Config | None":
    """Of None or False, True, a table of settings, or an Int8Config; UsageError for anything else."""
    from fineprune.export.int8.quantiser import Int8Config

    if given is None or given is False:
        return None
    if isinstance(given, Int8Config):
        return given
    settings = {} if given is True else given
    if not isinstance(settings, Mapping) or set(settings) - {"ranges", "images", "max_drop"}:
        raise UsageError(f"int8 is true, false or a table of ranges, images and max_drop, got {given!r:.80}")
    return Int8Config(**settings)


def quantiser_of(job: Int8Export, progress: Progress) -> "Quantiser":
    """Training images calibrate; validation images judge, or other training images where there are none. A fixed seed draws all."""
    from fineprune.export.int8.quantiser import Quantiser

    if isinstance(job.data, Structured):
        count = min(job.config.images, len(job.data) - _held(job.data))
        return Quantiser(samples=arrays_of(first(job.data, count)), config=job.config, progress=progress)
    train = next((split for split in (job.data.train, job.data.validation, job.data.test) if len(split)), None)
    if train is None:
        raise UsageError(f"the data set {job.data.spec} is empty; int8 needs images to calibrate")
    order, count, config = _drawn(train), job.config.images, job.config
    judge = None
    if config.max_drop is not None:
        held = job.data.validation
        others = order[count:] if len(order) > count else order
        judge = _judge(job.data, held, _drawn(held)) if len(held) else _judge(job.data, train, others)
    return Quantiser(samples=_images(train.subset(order[:count])), config=config, judge=judge, progress=progress)


def samples_for(config: "Int8Config") -> int:
    """How many samples a network is called on, of which `config.images` calibrate and the last measure."""
    return -(-config.images * _HELD // (_HELD - 1))


def _held(samples: Structured) -> int:
    return max(1, len(samples) // _HELD)


def _drawn(split: Split) -> torch.Tensor:
    """All samples in an order of chance: folders of images have them class by class."""
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(0))


def _judge(data: ImageData, split: Split, indices: torch.Tensor) -> "Judge":
    from fineprune.export.int8.quantiser import Judge

    batches = list(split.subset(indices[:JUDGED]).batches(_BATCH))

    def score(outputs: np.ndarray, exact: np.ndarray) -> float:
        metric, starts = _metric(data, outputs), [_BATCH * number for number in range(len(batches))]
        tally = Tally(metric)
        for start, batch in zip(starts, batches, strict=True):
            part = slice(start, start + len(batch.indices))
            _add(tally, metric, outputs[part], exact[part], batch)
        return (tally.value if metric.higher_is_better else -tally.value) * (100 if metric.unit is None else 1)

    return Judge(images=np.concatenate([one(batch.images).numpy() for batch in batches]), score=score)


def _metric(data: ImageData, outputs: np.ndarray) -> Metric:
    """What `outputs` on `data` are measured by: the user's metric, or classes, or how near they are to those of float32."""
    objective = objective_of(data.train)
    if objective is not None:
        return objective.metric
    return RELATIVE_ERROR if not is_class_scores(outputs) else ACCURACY if data.labelled else AGREEMENT


def _add(tally: Tally, metric: Metric, outputs: np.ndarray, exact: np.ndarray, batch: Batch) -> None:
    """Take in the outputs of a batch. exact: those in float32."""
    against = torch.from_numpy(exact) if metric in (AGREEMENT, RELATIVE_ERROR) else batch.labels
    tally.add(torch.from_numpy(outputs), against, len(outputs))


def _images(split: Split) -> np.ndarray:
    return np.concatenate([one(batch.images).numpy() for batch in split.batches(_BATCH)])


def _distance(float32: Path, int8: Path | str, samples: Structured) -> dict[str, Any]:
    """How far the outputs of the two files are from each other."""
    from fineprune.export.runtimes import OnnxRuntime

    outputs = []
    for name, path in (("float32", float32), ("int8", int8)):
        runtime = OnnxRuntime(name, path)
        runtime.load(torch.get_num_threads())
        outputs.append(tuple(map(torch.from_numpy, runtime.outputs(*arrays_of(samples)))))
        runtime.close()
    facts = {"measure": RELATIVE_ERROR.name, "unit": RELATIVE_ERROR.unit, "higher_is_better": RELATIVE_ERROR.higher_is_better}
    error = RELATIVE_ERROR.figures(outputs[1], outputs[0], len(samples)).mean()
    return {"split": "held-out", "samples": len(samples), **facts, "relative_error": float(error)}


def cost(float32: Path, int8: Path | str, data: ImageData | Structured, bundle: "Bundle | None", progress: Progress) -> dict[str, Any]:
    """Figures of the two files in ONNX Runtime on the held-out split, how near int8 is to float32, and the dense network's figure there."""
    from fineprune.export.runtimes import OnnxRuntime

    if isinstance(data, Structured):
        held = _held(data)
        return _distance(float32, int8, replace(data.map(lambda tensor: tensor[-held:]), samples=held))
    name, split = data.held_out, getattr(data, data.held_out)
    facts: dict[str, Any] = {"split": name, "samples": len(split)}
    if not len(split):
        return facts
    runtimes = {"float32": OnnxRuntime("float32", float32), "int8": OnnxRuntime("int8", int8)}
    for runtime in runtimes.values():
        runtime.load(torch.get_num_threads())
    tallies: dict[str, Tally] = {}
    metric, nearness, near = ACCURACY, AGREEMENT, Tally(AGREEMENT)
    batches = split.batches(_BATCH)
    for batch in progress(batches, total=split.number_of_batches(_BATCH), description=f"float32 and int8 on {name} images"):
        outputs = {key: runtime.run(one(batch.images).numpy()) for key, runtime in runtimes.items()}
        exact = outputs["float32"]
        if not tallies:
            metric = _metric(data, exact)
            nearness = AGREEMENT if metric in (ACCURACY, AGREEMENT) else RELATIVE_ERROR
            tallies, near = {key: Tally(metric) for key in runtimes}, Tally(nearness)
        _add(near, nearness, outputs["int8"], exact, batch)
        for key, answers in outputs.items():
            _add(tallies[key], metric, answers, exact, batch)
    for runtime in runtimes.values():
        runtime.close()
    facts |= {"measure": metric.name} | ({} if metric is ACCURACY else {"unit": metric.unit, "higher_is_better": metric.higher_is_better})
    if metric is not nearness:
        facts |= {"dense": _dense(facts, bundle), **{key: tally.value for key, tally in tallies.items()}}
    return {**facts, "agreement" if nearness is AGREEMENT else "relative_error": near.value}


def _dense(facts: Mapping[str, Any], bundle: "Bundle | None") -> float | None:
    """What the manifest knows of the dense network, where it was measured alike."""
    known = bundle.facts["accuracy"] if bundle is not None else {}
    alike = known.get("measure", ACCURACY.name) == facts["measure"] and all(known.get(key) == facts[key] for key in ("split", "samples"))
    return known.get("dense") if alike else None


def cost_line(facts: Mapping[str, Any]) -> str:
    """What the user reads of `cost` and of the layers that stayed."""
    found, kept = facts["accuracy"], facts["kept_in_float32"]
    masked = len(facts.get("block_masked", ()))
    stayed = f"; {len(kept)} of {facts['layers']} layers stay in float32: {', '.join(kept)}" if kept else ""
    stayed += f"; {masked} convolutions with block masks are integers in the engine alone" if masked else ""
    where = f"{found['samples']} {found['split']} images"
    if "agreement" in found:
        near = f"the same class on {found['agreement']:.2%} of {where}"
    elif "relative_error" in found:
        near = f"outputs differ by {found['relative_error']:.2%} from float32's on {where}"
    else:
        return f"int8: no held-out images to measure accuracy on{stayed}"
    if "int8" not in found:
        return f"int8: {near}{stayed}"
    figures = [f"{key} {written(found[key], found.get('unit'))}" for key in ("dense", "float32", "int8") if found[key] is not None]
    return f"{found['split']} {found['measure']}: {', '.join(figures)}; {near}{stayed}"
