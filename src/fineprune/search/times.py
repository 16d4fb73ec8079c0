"""How long each layer takes at each level on a machine, and what a choice of levels is expected to take.

    latency(s) = rest + scale * sum_l t[l][s_l]

t: seconds of single layers, one thread, one sample; rest and scale are fitted to the latencies of whole networks all of whose layers are at
one level, on as many threads and samples as are asked for. Files in which the engine leaves much to ONNX Runtime say nothing of its
layers: levels that take nearly as long as the dense network are left out of the fit.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from fineprune.calibrate.convolutions import ConvSite
from fineprune.common.copies import copied
from fineprune.common.errors import RunError
from fineprune.common.files import read_json, write_json
from fineprune.common.form import Maybe, Within, require
from fineprune.common.progress import Progress, working
from fineprune.compressor.bake import Masks, bake, dense_twin
from fineprune.compressor.search.levels import DENSE, Level
from fineprune.export.machine import machine_facts

from .target import Target

if TYPE_CHECKING:
    from fineprune.export.benchmark import Latency

SCHEMA = 1
_LEAST = 1e-9
"""Seconds that all layers take at least."""
_SATURATED = 0.95
"""Of the dense network's latency in the engine."""
_ROUNDS, _MORE, _SPREAD = 15, 4, 0.06
"""Of a measurement; so many times as many where the quartiles of speed-ups are further apart than that."""


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Times of a machine. layers: seconds by layer and level; whole: seconds of the network all of whose layers are at a level.

    reference: seconds of the dense network in ONNX Runtime, float32, on as many threads and samples.
    """

    layers: Mapping[str, Mapping[Level, float]]
    whole: Mapping[Level, float]
    reference: float
    int8: bool = False
    threads: int = 1
    batch: int = 1
    unit: str = "weight"
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of each layer's weights."""
    machine: Mapping[str, Any] = field(default_factory=dict)

    def expected(self, levels: Mapping[str, Level]) -> float:
        """Seconds of the network whose layers are at these levels; others are dense."""
        rest, scale = self.fit
        return rest + scale * sum(of_layer[levels.get(name, DENSE)] for name, of_layer in self.layers.items())

    @property
    def fit(self) -> tuple[float, float]:
        """rest and scale, both at least 0."""
        sums = {level: self._sum(level) for level in self.whole}
        useful = [level for level in sums if level != DENSE and self.whole[level] < _SATURATED * self.whole.get(DENSE, np.inf)]
        useful = useful or list(sums)
        x, y = np.array([sums[level] for level in useful]), np.array([self.whole[level] for level in useful])
        if len(useful) > 1 and np.ptp(x) > 0:
            (rest, scale), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones(len(y)), rcond=None)
            if rest >= 0 and scale > 0:
                return float(rest), float(scale)
        return 0.0, float(np.median(y / np.maximum(x, _LEAST)))

    def _sum(self, level: Level) -> float:
        return sum(of_layer.get(level, of_layer[DENSE]) for of_layer in self.layers.values())

    def save(self, path: Path | str) -> None:
        """Write them as JSON."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As plain values, None for what could not be timed."""
        levels = [DENSE, *sorted(self.whole.keys() - {DENSE})]
        return {
            "schema": SCHEMA,
            "levels": [level.to_json() for level in levels],
            "layers": [
                {"name": name, "shape": list(self.shapes[name]), "seconds": [of_layer.get(level) for level in levels]}
                for name, of_layer in self.layers.items()
            ],
            "whole_seconds": [self.whole.get(level) for level in levels],
            "reference_seconds": self.reference,
            **{name: getattr(self, name) for name in ("int8", "threads", "batch", "unit")},
            "machine": dict(self.machine),
        }

    @classmethod
    def load(cls, path: Path | str) -> "LayerTimes":
        """Those that `save` wrote; RunError for another file."""
        facts = read_json(path)
        require(facts, _FORM, str(path), _AGAIN)
        levels = [Level(one["ffp"], one["fwp"]) for one in facts["levels"]]
        rows = [*(layer["seconds"] for layer in facts["layers"]), facts["whole_seconds"]]
        if facts["schema"] != SCHEMA or any(len(row) != len(levels) for row in rows) or DENSE not in levels:
            raise RunError(f"{path} holds no times of layers as this version writes them; {_AGAIN}")

        def by_level(values: list[Any]) -> dict[Level, float]:
            return {level: value for level, value in zip(levels, values, strict=True) if value is not None}

        layers = {layer["name"]: by_level(layer["seconds"]) for layer in facts["layers"]}
        return cls(
            layers={name: of_layer for name, of_layer in layers.items() if DENSE in of_layer},
            whole=by_level(facts["whole_seconds"]),
            reference=facts["reference_seconds"],
            shapes={layer["name"]: tuple(layer["shape"]) for layer in facts["layers"]},
            **{name: facts[name] for name in ("int8", "threads", "batch", "unit", "machine")},
        )

    def check(self, sites: Sequence[ConvSite], target: Target, unit: str, where: str) -> None:
        """RunError where they are of another network, other units or other precision than asked for."""
        shapes = {site.name: tuple(site.weight_shape) for site in sites}
        other = sorted(name for name, shape in self.shapes.items() if shapes.get(name) != tuple(shape))
        if other or not self.layers:
            raise RunError(f"{where} has times of another network ({other[0] if other else 'it has no layers'}); profile this one there")
        for name, mine, asked in (("int8", self.int8, target.int8), ("unit", self.unit, unit)):
            if mine != asked:
                raise RunError(f"{where} was measured with {name}={mine}, and {asked} is asked for; profile with the same")


_AGAIN = "make it again with fineprune profile"
_SECONDS = Within(float, 0, 1e6)
_RATIO = Within(float, 0, 1)
_FORM = {
    **{"schema": int, "levels": [{"ffp": _RATIO, "fwp": _RATIO}], "whole_seconds": [Maybe(_SECONDS)]},
    **{"layers": [{"name": str, "shape": [int], "seconds": [Maybe(_SECONDS)]}], "reference_seconds": _SECONDS},
    **{"int8": bool, "threads": int, "batch": int, "unit": str, "machine": {}},
}


class Machine:
    """This machine, on which networks are exported and timed. samples: float32 [N,C,H,W], which calibrate int8."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], target: Target, samples: np.ndarray, progress: Progress) -> None:
        self.model, self._shape, self._target, self._samples, self._progress = model, shape, target, samples, progress

    def times(self, masks: Mapping[Level, Masks], sites: Sequence[ConvSite], unit: str) -> LayerTimes:
        """Of the network's layers at all levels, and dense."""
        from fineprune.export.level_times import layer_seconds

        with tempfile.TemporaryDirectory(prefix="fineprune-times-") as folder:
            files = {DENSE: self._exported(self.model, Path(folder) / "dense.onnx")}
            levels = sorted(masks)
            for number, level in enumerate(self._progress(levels, total=len(levels), description="exporting levels")):
                masked = bake(self.model, masks[level], input_shape=self._shape)
                files[level] = self._exported(masked, Path(folder) / f"{number}.onnx")
            names = {site.name for site in sites}
            found = layer_seconds(files, names, self._samples[:1], progress=self._progress)
            latencies, reference = self._latencies(files, Path(folder))
        layers: dict[str, dict[Level, float]] = {}
        for level, of_level in found.items():
            for name, seconds in of_level.items():
                layers.setdefault(name, {})[level] = seconds
        return LayerTimes(
            layers={site.name: layers[site.name] for site in sites if DENSE in layers.get(site.name, {})},
            whole={level: row.median_ms / 1e3 for level, row in latencies.items()},
            reference=reference.median_ms / 1e3,
            **{name: getattr(self._target, name) for name in ("int8", "threads", "batch")},
            unit=unit,
            shapes={site.name: site.weight_shape for site in sites},
            machine=machine_facts(),
        )

    def latency(self, masked: nn.Module) -> tuple["Latency", "Latency"]:
        """Of a masked network in the engine, and of the dense one in ONNX Runtime beside it; in more rounds where they differ much."""
        with tempfile.TemporaryDirectory(prefix="fineprune-times-") as folder:
            files = {DENSE: self._exported(masked, Path(folder) / "masked.onnx")}
            found, reference = self._latencies(files, Path(folder))
            row = found[DENSE]
            if row.speedup_p75 - row.speedup_p25 > _SPREAD * row.speedup:
                found, reference = self._latencies(files, Path(folder), rounds=_MORE * _ROUNDS)
            return found[DENSE], reference

    def _exported(self, model: nn.Module, path: Path) -> Path:
        from fineprune.export.exporter import export_onnx
        from fineprune.export.int8.quantiser import Quantiser

        with working(self._progress, "exporting"):
            export_onnx(copied(model).cpu().eval(), self._shape, path, int8=Quantiser(samples=self._samples) if self._target.int8 else None)
        return path

    def _latencies(self, files: Mapping[Level, Path], folder: Path, rounds: int = _ROUNDS) -> tuple[dict[Level, "Latency"], "Latency"]:
        from fineprune.export.benchmark import BenchmarkConfig, benchmark
        from fineprune.export.engine.run.runtime import EngineRuntime
        from fineprune.export.exporter import export_onnx
        from fineprune.export.runtimes import OnnxRuntime, Runtime

        reference = folder / "reference.onnx"
        export_onnx(dense_twin(self.model).cpu().eval(), self._shape, reference, plain=True)
        runtimes: list[Runtime] = [OnnxRuntime("dense", reference), *(EngineRuntime(f"at {level}", path) for level, path in files.items())]
        target = self._target
        config = BenchmarkConfig(batch_sizes=(target.batch,), threads=(target.threads,), rounds=rounds)
        rows = {row.runtime: row for row in benchmark(runtimes, self._shape, config, progress=self._progress).rows}
        missing = [level for level in files if f"at {level}" not in rows]
        if missing:
            raise RunError(f"the engine could not be timed on the network at {missing[0]}; the lines above say why")
        return {level: rows[f"at {level}"] for level in files}, rows["dense"]
