"""What each layer costs at each level, measured on held-out samples: figures that people read, and the error that the search adds up.

    class scores      e = KL( softmax(f(x)) || softmax(f_ls(x)) ), in nats
    other outputs y   e = || y_ls - y ||^2 / || y ||^2

The error needs no labels. Where there are labels, loss and accuracy (or the user's metric) stand beside it. Rows are kept in a file as they
come, so that what was interrupted goes on and what was measured is not measured again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.statistics import fingerprint, masks_by_layer
from fineprune.common.errors import RunError, UsageError
from fineprune.common.files import read_json, write_json
from fineprune.common.inputs import numbers_of
from fineprune.compressor.prune import CalibrationRun
from fineprune.compressor.reconstruct.run import ReconstructConfig
from fineprune.compressor.search.levels import Level
from fineprune.compressor.search.sensitivity import LevelMasks, Sensitivity, sensitivities
from fineprune.export.machine import machine_facts
from fineprune.models.data import ImageData
from fineprune.models.objective import ACCURACY, AGREEMENT, Metric, is_class_scores, objective_of
from fineprune.models.training.distillation import distillation_loss, output_loss
from fineprune.models.training.evaluate import evaluate

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
        self._name, split = next((name, split) for name, split in _splits(data) if len(split))
        samples = samples or max(FEW, min(SAMPLES, NUMBERS // numbers_of(data.shape)))
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(run.config.seed))[:samples]
        self._split, self._refit = split.subset(order), refit
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
        judge = _judge(self.metric, objective_of(self._split), [batch.labels for batch in batches])
        images = [batch.images for batch in batches]
        if self.dense is None:
            self.dense = evaluate(self.model, self._split, device=self.run.device).accuracy
        done = frozenset(self.rows)
        last = None
        for row in sensitivities(self.model, self.masks, self.sites, self.run, images, judge, refit=self._refit, done=done):
            if last not in (None, row.layer):
                self._keep()
            self.rows[row.layer, row.level], last = row, row.layer
        self._keep()

    def errors(self, name: str) -> dict[Level, float]:
        """Of a layer, by level."""
        return {level: max(0.0, row.figures["error"]) for (layer, level), row in self.rows.items() if layer == name}

    def to_json(self) -> dict[str, Any]:
        """Rows, what was measured on what, and where."""
        return {
            "key": self._key,
            "measure": self.metric.name,
            "unit": self.metric.unit,
            "higher_is_better": self.metric.higher_is_better,
            "dense": self.dense,
            "split": self._name,
            "samples": len(self._split),
            "rows": [row.to_json() for row in self.rows.values()],
            "machine": machine_facts(),
        }

    def _keep(self) -> None:
        if self._path is not None:
            write_json(self._path, self.to_json())

    def _recall(self) -> None:
        if self._path is None or not self._path.is_file():
            return
        try:
            facts = read_json(self._path)
        except RunError:
            return
        if not isinstance(facts, Mapping) or facts.get("key") != self._key:
            return
        self.dense = facts["dense"]
        for row in facts["rows"]:
            level = Level(**row["level"])
            figures = {name: row[name] for name in ("error", "accuracy", "loss") if name in row}
            self.rows[row["layer"], level] = Sensitivity(layer=row["layer"], level=level, kept=row["kept"], figures=figures)


def _splits(data: ImageData) -> list[tuple[str, Any]]:
    splits = [("validation", data.validation), ("training", data.train)]
    if not any(len(split) for _, split in splits):
        raise UsageError(f"the data set {data.spec} is empty; give samples to measure on")
    return splits


def _key(all_: Sensitivities, data: ImageData) -> str:
    """What rows depend on."""
    network = fingerprint(all_.model, masks_by_layer(all_.model, (name for name, _ in all_.model.named_modules())))
    digest = hashlib.sha256()
    for level in sorted(all_.masks):
        digest.update(str(level).encode())
        for kind, of_kind in all_.masks[level].items():
            for name, mask in sorted(of_kind.items()):
                digest.update(f"{kind} {name}".encode() + mask.numpy().tobytes())
    settings = [network, data.to_json(), digest.hexdigest(), len(all_._split), str(all_._refit), all_.run.config.seed, all_.metric.name]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _judge(metric: Metric, objective: Any, labels: list[Any]) -> Callable[[Any, Any, int], dict[str, float]]:
    """Means over the samples of a batch."""

    def judge(outputs: Any, exact: Any, number: int) -> dict[str, float]:
        scores = is_class_scores(exact)
        error = distillation_loss(outputs.float(), exact.float(), 1.0) if scores else output_loss(outputs, exact)
        found = {"error": float(error.double().mean())}
        targets, count = labels[number], len(error)
        if metric is AGREEMENT:
            return found | {"accuracy": float(metric.figures(outputs, exact, count).double().mean())}
        figures = {"accuracy": float(metric.figures(outputs.cpu() if metric is ACCURACY else outputs, targets, count).double().mean())}
        if objective is not None:
            return found | figures | {"loss": float(objective.losses(outputs, targets, count).double().mean())}
        loss = torch.nn.functional.cross_entropy(outputs.float().cpu(), targets)
        return found | figures | {"loss": float(loss)}

    return judge
