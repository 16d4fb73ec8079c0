"""The files of one network that stand for points: in float32 and in int8, for the engine, and of the dense network for ONNX Runtime, too.

A row is one file in one runtime: name, runtime, int8, file (its name), accuracy (or the user's figure).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fineprune.common.errors import FinepruneError
from fineprune.common.progress import Progress, working
from fineprune.models.data import ImageData
from fineprune.models.training.evaluate import evaluate

from ..deployment import PARITY_SAMPLES, Exported, export_int8, export_network
from ..evaluation import figure_of
from ..int8 import Int8Export, int8_config, quantiser_of
from ..networks import Network
from ..samples import held_out

if TYPE_CHECKING:
    from fineprune.export.benchmark import BenchmarkConfig
    from fineprune.export.runtimes import Runtime

FLOAT32, INT8, STOCK = "float32.onnx", "int8.onnx", "onnxruntime-int8.onnx"
DENSE = ("dense, ONNX Runtime", "dense, engine", "int8, engine", "int8, ONNX Runtime")
"""Names of the dense network's rows."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where and how files are made and measured. data: with labels."""

    data: ImageData
    int8: bool
    device: str
    progress: Progress

    def dense(self, network: Network, place: Path) -> Rows:
        """Of the network as it is; in int8 in ONNX Runtime as that quantises it, by the training images that calibrate ours."""
        from fineprune.export.peers.int8 import quantise

        how: dict[str, Any] = {"device": self.device, "progress": self.progress, "description": "dense"}
        accuracy = evaluate(network.model, getattr(self.data, self.data.held_out), **how).accuracy
        row = {"name": DENSE[0], "runtime": "onnxruntime", "int8": False, "file": FLOAT32, "accuracy": accuracy}
        rows = [row, *self.in_engine(network, place, DENSE[1:3], accuracy, plain=True)]
        if not self.int8:
            return rows
        with working(self.progress, "quantising by ONNX Runtime"):
            quantise(place / FLOAT32, place / STOCK, np.asarray(quantiser_of(self._job, self.progress).samples))
        accuracy = self._figure(place / STOCK, "onnxruntime")
        return [*rows, {**row, "name": DENSE[3], "int8": True, "file": STOCK, "accuracy": accuracy}]

    def in_engine(self, network: Network, place: Path, names: Sequence[str], accuracy: float | None, *, plain: bool = False) -> Rows:
        """Files in float32 and in int8, called `names`, each compared with what it was made of: those that the engine computes.

        accuracy: of the network in float32; that in int8 is measured on its file. plain: as in `to_onnx`.
        """
        how: dict[str, Any] = {"samples": held_out(self.data, PARITY_SAMPLES), "plain": plain, "progress": self.progress}
        exported = export_network(network, place / FLOAT32, **how)
        row = {"name": names[0], "runtime": "engine", "int8": False, "file": FLOAT32, "accuracy": accuracy}
        rows = [row] if _runs(exported) else []
        if not self.int8:
            return rows
        try:
            exported = export_int8(network, place / INT8, self._job, **how)
        except FinepruneError as error:
            self.progress.log(f"{names[1]} is left out: {error}")
            return rows
        if not _runs(exported):
            return rows
        return [*rows, {**row, "name": names[1], "int8": True, "file": INT8, "accuracy": self._figure(place / INT8, "engine")}]

    @cached_property
    def _job(self) -> Int8Export:
        config = int8_config({})
        assert config is not None
        return Int8Export(config=config, data=self.data)

    def _figure(self, file: Path, runtime: str) -> float:
        """What the file itself is worth, in what it is timed in."""
        return figure_of(_runtime(file.name, file, runtime), getattr(self.data, self.data.held_out), progress=self.progress)


def latencies(
    rows: Sequence[tuple[Mapping[str, Any], Path]], shape: tuple[int, ...], config: "BenchmarkConfig", progress: Progress
) -> dict[str, dict[str, Any]]:
    """Milliseconds of all rows, with the paths of their files, by name: all take turns in one benchmark."""
    from fineprune.export.benchmark import benchmark

    runtimes = [_runtime(row["name"], path, row["runtime"]) for row, path in rows]
    report = benchmark(runtimes, shape, config, progress=progress)
    return {row.runtime: {"milliseconds": row.median_ms, "reliable": row.reliable} for row in report.rows}


def _runs(exported: Exported) -> bool:
    """Whether the engine computes what it should; where not, a line of the log has said so."""
    from fineprune.export.parity import ENGINE

    parity = exported.parity
    return parity is not None and parity.compares(ENGINE) and not parity.engine_warning()


def _runtime(name: str, path: Path, runtime: str) -> "Runtime":
    from fineprune.export.engine.run.runtime import EngineRuntime
    from fineprune.export.runtimes import OnnxRuntime

    return EngineRuntime(name, path) if runtime == "engine" else OnnxRuntime(name, path)
