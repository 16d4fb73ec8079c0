"""What each layer costs at each level, measured on held-out samples: figures that people read, and the error that the search adds up.

    class scores      e = KL( softmax(f(x)) || softmax(f_ls(x)) ), in nats
    other outputs y   e = || y_ls - y ||^2 / || y ||^2

The error needs no labels. Where there are labels, loss and accuracy (or the user's metric) stand beside it. Rows are kept in a file as they
come, so that what was interrupted goes on and what was measured is not measured again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.statistics import fingerprint, masks_by_layer
from fineprune.common.files import read_json, write_json
from fineprune.common.form import Maybe, Within, require
from fineprune.common.inputs import numbers_of
from fineprune.compressor.masks import KINDS
from fineprune.compressor.prune import CalibrationRun
from fineprune.compressor.reconstruct.run import ReconstructConfig
from fineprune.compressor.search.levels import Level
from fineprune.compressor.search.sensitivity import LevelMasks, Sensitivity, sensitivities
from fineprune.export.machine import machine_facts
from fineprune.models.data import ImageData
from fineprune.models.objective import ACCURACY, AGREEMENT, Metric, Tally, is_class_scores, objective_of
from fineprune.models.training.distillation import distillation_loss, output_loss
from fineprune.models.training.evaluate import evaluate

from .drop import judged_on

_LEVEL = {kind.name: Within(float, 0, 1) for kind in KINDS}
_ROW = {"layer": str, "level": _LEVEL, "kept": float, "error": float, "masks": str, **dict.fromkeys(("accuracy", "loss"), Maybe(float))}
_FORM = {"key": str, "dense": Maybe(float), "rows": [_ROW]}
SAMPLES, FEW, NUMBERS = 512, 128, 512 * 3 * 64 * 64
"""Held-out samples that errors are measured on; of samples so large that these would hold more numbers, fewer, but so many at least."""
_BATCH = 128


class Sensitivities:
    """Rows of a network by layer and level, those in `path` among them; measured by `measure`."""

    def __init__(
        self,
        model: nn.Module,
        masks: LevelMasks,
        sites: list[ConvSite],
        run: CalibrationRun,
        data: ImageData,
        *,
        refit: ReconstructConfig | None,
        samples: int | None = None,
        path: Path | None = None,
    ) -> None:
        self.model, self.masks, self.sites, self.run, self._path = model, masks, sites, run, path
        self._name, split = judged_on(data)
        samples = samples or max(FEW, min(SAMPLES, NUMBERS // numbers_of(data.shape)))
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(run.config.seed))[:samples]
        self._split, self.refit = split.subset(order), refit
        objective = objective_of(split)
        self.metric = objective.metric if objective else ACCURACY if data.labelled else AGREEMENT
        self.rows: dict[tuple[str, Level], Sensitivity] = {}
        self.dense: float | None = None
        """The figure of the network given."""
        self._key = _key(self, data)
        self._recall()

    def measure(self) -> None:
        """All rows that are not there yet."""
        size = max(1, min(_BATCH, len(self._split)))
        batches = list(self._split.batches(size))
        judge = _judge(self.metric, objective_of(self._split), batches)
        images = [batch.images for batch in batches]
        if self.dense is None:
            self.dense = evaluate(self.model, self._split, device=self.run.device).accuracy
        done = frozenset(self.rows)
        last = None
        for row in sensitivities(self.model, self.masks, self.sites, self.run, images, judge, refit=self.refit, done=done):
            if last not in (None, row.layer):
                self._keep()
            self.rows[row.layer, row.level], last = row, row.layer
        self._keep()

    def errors(self, name: str) -> dict[Level, float]:
        """Of a layer, by level."""
        return {level: max(0.0, row.figures["error"]) for (layer, level), row in self.rows.items() if layer == name}

    @property
    def measured_on(self) -> dict[str, Any]:
        """The split, and how many of its samples."""
        return {"split": self._name, "samples": len(self._split)}

    def to_json(self) -> dict[str, Any]:
        """Rows, what was measured on what, and where."""
        return {
            "key": self._key,
            "measure": self.metric.name,
            "unit": self.metric.unit,
            "higher_is_better": self.metric.higher_is_better,
            "dense": self.dense,
            **self.measured_on,
            "rows": [{**row.to_json(), "masks": _digest(self.masks[row.level], row.layer)} for row in self.rows.values()],
            "machine": machine_facts(),
        }

    def _keep(self) -> None:
        if self._path is not None:
            write_json(self._path, self.to_json())

    def _recall(self) -> None:
        if self._path is None or not self._path.is_file():
            return
        facts = read_json(self._path)
        require(facts, _FORM, str(self._path), "it is no file of this kind, or was edited; name another one")
        if facts["key"] != self._key:
            self.run.progress.log(f"{self._path} has figures of other settings, which are replaced")
            return
        self.dense = facts["dense"]
        for row in facts["rows"]:
            level = Level(**row["level"])
            if level not in self.masks or row["masks"] != _digest(self.masks[level], row["layer"]):
                continue
            figures = {name: row[name] for name in ("error", "accuracy", "loss") if row.get(name) is not None}
            self.rows[row["layer"], level] = Sensitivity(layer=row["layer"], level=level, kept=row["kept"], figures=figures)


def _key(found: Sensitivities, data: ImageData) -> str:
    """What all rows depend on, beside the masks of each."""
    network = fingerprint(found.model, masks_by_layer(found.model, (name for name, _ in found.model.named_modules())))
    settings = [network, data.to_json(), found.measured_on, str(found.refit), found.run.config.seed, found.metric.name]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _digest(masks: Mapping[str, Mapping[str, Tensor]], layer: str) -> str:
    """Of the masks of a layer, by kind."""
    digest = hashlib.sha256()
    for kind, of_kind in sorted(masks.items()):
        if layer in of_kind:
            digest.update(kind.encode() + of_kind[layer].numpy().tobytes())
    return digest.hexdigest()[:16]


def _judge(metric: Metric, objective: Any, batches: list[Any]) -> Callable[[Iterator[tuple[Any, Any]]], dict[str, float]]:
    """Figures of answers to all batches."""

    def judge(answers: Iterator[tuple[Any, Any]]) -> dict[str, float]:
        sums, tally = {"error": 0.0} | ({} if metric is AGREEMENT else {"loss": 0.0}), Tally(metric)
        for (outputs, exact), batch in zip(answers, batches, strict=True):
            targets, count = batch.labels, len(batch.indices)
            scores = is_class_scores(exact)
            error = distillation_loss(outputs.float(), exact.float(), 1.0) if scores else output_loss(outputs, exact)
            sums["error"] += float(error.double().mean()) * count
            if metric is AGREEMENT:
                tally.add(outputs, exact, count)
                continue
            tally.add(outputs.cpu() if metric is ACCURACY else outputs, targets, count)
            if objective is not None:
                sums["loss"] += float(objective.losses(outputs, targets, count).double().sum())
            else:
                sums["loss"] += float(torch.nn.functional.cross_entropy(outputs.float().cpu(), targets, reduction="sum"))
        return {name: total / tally.count for name, total in sums.items()} | {"accuracy": tally.value}

    return judge
