"""Eight-bit files: which images calibrate and judge them, and what they cost in accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fineprune.common.errors import UsageError
from fineprune.common.progress import Progress
from fineprune.models.data import ImageData, Split

from .unlabelled import AGREEMENT

if TYPE_CHECKING:
    from fineprune.compressor.bundle import Bundle
    from fineprune.export.int8.quantiser import Int8Config, Judge, Quantiser

JUDGED = 2048
"""Images on which `max_drop` is measured, at most."""
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Int8Export:
    """What an export in int8 takes: its settings, and the data whose training images calibrate it."""

    config: "Int8Config"
    data: ImageData


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


def _drawn(split: Split) -> torch.Tensor:
    """All samples in an order of chance: folders of images have them class by class."""
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(0))


def _judge(data: ImageData, split: Split, indices: torch.Tensor) -> "Judge":
    from fineprune.export.int8.quantiser import Judge

    chosen = split.subset(indices[:JUDGED])
    return Judge(images=_images(chosen), labels=chosen.labels.numpy() if data.labelled else None)


def _images(split: Split) -> np.ndarray:
    return np.concatenate([batch.images.numpy() for batch in split.batches(_BATCH)])


def cost(float32: Path, int8: Path | str, data: ImageData, bundle: "Bundle | None", progress: Progress) -> dict[str, Any]:
    """Accuracies of the two files in ONNX Runtime on the held-out split, how often they agree, and the dense network's there."""
    from fineprune.export.runtimes import OnnxRuntime

    name, split = ("test", data.test) if len(data.test) else ("validation", data.validation)
    facts: dict[str, Any] = {"split": name, "samples": len(split), "measure": "accuracy" if data.labelled else AGREEMENT}
    if not len(split):
        return facts
    runtimes = {"float32": OnnxRuntime("float32", float32), "int8": OnnxRuntime("int8", int8)}
    right, agreed = dict.fromkeys(runtimes, 0), 0
    for runtime in runtimes.values():
        runtime.load(torch.get_num_threads())
    batches = split.batches(_BATCH)
    for batch in progress(batches, total=split.number_of_batches(_BATCH), description=f"float32 and int8 on {name} images"):
        answers = {key: runtime.run(batch.images.numpy()).argmax(1) for key, runtime in runtimes.items()}
        agreed += int((answers["int8"] == answers["float32"]).sum())
        for key, answer in answers.items():
            right[key] += int((answer == batch.labels.numpy()).sum())
    for runtime in runtimes.values():
        runtime.close()
    if data.labelled:
        facts |= {"dense": _dense(facts, bundle), **{key: count / len(split) for key, count in right.items()}}
    return {**facts, "agreement": agreed / len(split)}


def _dense(facts: Mapping[str, Any], bundle: "Bundle | None") -> float | None:
    """What the manifest knows of the dense network, where it was measured alike."""
    known = bundle.facts["accuracy"] if bundle is not None else {}
    alike = known.get("measure") in (None, facts["measure"]) and all(known.get(key) == facts[key] for key in ("split", "samples"))
    return known.get("dense") if alike else None


def cost_line(facts: Mapping[str, Any]) -> str:
    """What the user reads of `cost` and of the layers that stayed."""
    found, kept = facts["accuracy"], facts["kept_in_float32"]
    masked = len(facts.get("block_masked", ()))
    stayed = f"; {len(kept)} of {facts['layers']} layers stay in float32: {', '.join(kept)}" if kept else ""
    stayed += f"; {masked} convolutions with block masks are integers in the engine alone" if masked else ""
    if "agreement" not in found:
        return f"int8: no held-out images to measure accuracy on{stayed}"
    agreement = f"the same class on {found['agreement']:.2%} of {found['samples']} {found['split']} images"
    if "int8" not in found:
        return f"int8: {agreement}{stayed}"
    dense = "" if found["dense"] is None else f"dense {found['dense']:.2%}, "
    return f"{found['split']} accuracy: {dense}float32 {found['float32']:.2%}, int8 {found['int8']:.2%}; {agreement}{stayed}"
