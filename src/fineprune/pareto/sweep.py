"""The sweep: one network, compressed in several ways, all timed beside each other.

    what is wanted  ->  a bundle, files in float32 and int8, accuracies     (each kept as soon as it is there)
                    ->  one interleaved benchmark of all files              ->  points, of which those that no other beats are the front

FOLDER holds front.json, a folder `dense` and one for each compression in `points`: bundle, float32.onnx, int8.onnx, and facts.json, without
which it is not finished.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fineprune.calibrate.statistics import fingerprint
from fineprune.common.copies import copied
from fineprune.common.errors import RunError, UsageError
from fineprune.common.files import as_stored, check_writable, read_json, write_json
from fineprune.common.form import Maybe, require
from fineprune.common.inputs import Structured
from fineprune.common.processes import joined
from fineprune.common.progress import Progress
from fineprune.compressor.bundle import MANIFEST, Bundle
from fineprune.compressor.macs import count_macs
from fineprune.export.machine import machine_facts
from fineprune.models.data import ImageData
from fineprune.models.objective import ACCURACY, Metric, objective_of
from fineprune.models.training.device import resolve_device
from fineprune.models.zoo import ModelSpec

from ..asked import Asked
from ..compression import compress_network
from ..manifest import before_training, final_accuracy
from ..networks import Network, network_of
from ..unlabelled import answered
from .files import Files, latencies
from .points import FRONT, front_of, read_front

if TYPE_CHECKING:
    from fineprune.export.benchmark import BenchmarkConfig

DENSE = "dense"
FACTS = "facts.json"
_FORM = {
    **{"int8": bool, "settings": Maybe({}), "pruned": float, "macs": float, "accuracy_before": Maybe(float)},
    "files": [{"name": str, "runtime": str, "int8": bool, "file": str, "accuracy": Maybe(float)}],
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A compression that is to become points: its folder, its name, and what is asked of it, by ratios or by a target."""

    folder: str
    name: str
    asked: Asked


def wanted(asked: Asked, prune: Sequence[float], units: Sequence[str]) -> list[Wanted]:
    """`asked` at every ratio, of every unit of weights (none: the one that it names, or single weights)."""
    found = [
        Wanted(
            folder=f"{ratio:g}{unit and f'-{unit}'}",
            name=f"{100 * ratio:g} %{unit and f' {unit}s'}",
            asked=replace(asked, prune=ratio, fwp={**asked.fwp, "unit": unit} if unit else asked.fwp),
        )
        for unit in dict.fromkeys(units or ("",))
        for ratio in sorted(set(prune))
    ]
    if not found:
        raise UsageError("a front needs ratios; give some, such as 0.3 and 0.7")
    for each in found:
        each.asked.job()
    return found


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep knows. asked: what all compressions have in common; int8: whether there are files in eight-bit integers."""

    model: nn.Module
    spec: ModelSpec | None
    data: ImageData
    asked: Asked
    folder: Path
    config: "BenchmarkConfig"
    int8: bool
    device: str
    progress: Progress

    def run(self, several: Sequence[Wanted]) -> dict[str, Any]:
        """All that front.json holds at the end."""
        with joined() as group:
            if group.size > 1:
                raise UsageError("a front is made by one process; its compressions can be made by several, each by `fineprune compress`")
        check_writable(self.folder / FRONT)
        self._check()
        networks = list(dict.fromkeys([DENSE, *(f"points/{point['network']}" for point in self._earlier if point["network"] != DENSE)]))
        networks += [place for each in several if (place := f"points/{each.folder}") not in networks]
        earlier = {point["name"]: point for point in self._earlier}
        self._write(networks, earlier)
        self._record(DENSE, self._dense)
        for number, each in enumerate(several, 1):
            self.progress.log(f"compression {number} of {len(several)}: {each.name}")
            self._record(f"points/{each.folder}", partial(self._compressed, each))
            self._write(networks, earlier)
        rows = [(row, path) for _, row, path in self._rows(networks)]
        return self._write(networks, latencies(rows, self.data.input_shape, self.config, self.progress))

    @cached_property
    def files(self) -> Files:
        """What makes files and measures them."""
        return Files(data=self.measured[0], int8=self.int8, device=self.device, progress=self.progress)

    @cached_property
    def measured(self) -> tuple[ImageData, Metric]:
        """The data with labels, those of the dense network where they have none, and what is measured on them."""
        if not self.data.labelled:
            return answered(self.data, copied(self.model), resolve_device(self.device), self.progress, training=False)
        objective = objective_of(self.data.train)
        return self.data, ACCURACY if objective is None else objective.metric

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all points of a folder have in common."""
        return {"network": fingerprint(self.model), "data": self.data.digest, **self.asked.to_json()}

    @cached_property
    def _earlier(self) -> list[dict[str, Any]]:
        """Points of earlier calls."""
        path = self.folder / FRONT
        return list(read_front(path)["points"]) if path.is_file() else []

    def _check(self) -> None:
        """UsageError where the folder has points of other settings, RunError where there is nothing to measure on."""
        if isinstance(self.data.shape, Structured):
            raise UsageError("a front is of a network that takes one tensor, which other runtimes and int8 are given")
        if not len(self.data.test) and not len(self.data.validation):
            raise RunError("there are no held-out samples to measure accuracy on; give data with a test or validation split")
        path = self.folder / FRONT
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise UsageError(f"{self.folder} exists and is no folder of `fineprune front`; give another one")
            return
        there, asked = dict(_flat(read_front(path).get("settings"))), dict(_flat(as_stored(self.settings)))
        for name in sorted(there.keys() | asked.keys()):
            if there.get(name) != asked.get(name):
                words = "" if name in ("network", "data") else f", {there.get(name)} there and {asked.get(name)} here"
                raise UsageError(f"{self.folder} holds points of other settings ({name}{words}); give the same ones, or another folder")

    def _record(self, place: str, make: Callable[[Path], dict[str, Any]]) -> None:
        """facts.json of a network, which is made where it is not there, or lacks what is asked for now."""
        path = self.folder / place / FACTS
        if path.is_file() and (_facts(path)["int8"] or not self.int8):
            self.progress.log(f"{place}: kept")
            return
        (self.folder / place).mkdir(parents=True, exist_ok=True)
        write_json(path, {"int8": self.int8, **make(self.folder / place)})

    def _dense(self, place: Path) -> dict[str, Any]:
        """The network as it is."""
        model = copied(self.model).eval()
        macs = count_macs(model, self.data.shape).macs
        rows = self.files.dense(Network(model=model, spec=self.spec, input_shape=self.data.input_shape), place)
        return {"settings": None, "pruned": 0.0, "macs": macs, "accuracy_before": None, "files": rows}

    def _compressed(self, each: Wanted, place: Path) -> dict[str, Any]:
        """A compression: its bundle, which an interrupted call has perhaps left, and its files."""
        job = each.asked.job(device=self.device)
        bundle = self._bundle(place / "bundle", job.to_json())
        if bundle is None:
            target: dict[str, Any] = {"spec": self.spec, "output": place / "bundle", "progress": self.progress}
            bundle = compress_network(self.model, self.data, job, **target)
        accuracy = bundle.facts["accuracy"]
        network = network_of(bundle, model=copied(self.model))
        files = self.files.in_engine(network, place, (each.name, f"{each.name} int8"), final_accuracy(accuracy))
        return {
            "settings": each.asked.to_json(),
            "pruned": 1 - bundle.facts["conv_macs_kept"],
            "macs": bundle.facts["macs"]["macs"],
            "accuracy_before": before_training(accuracy),
            "files": files,
        }

    def _bundle(self, folder: Path, settings: Mapping[str, Any]) -> Bundle | None:
        """The one that is there, where it has these settings."""
        if not (folder / MANIFEST).is_file():
            return None
        bundle = Bundle.load(folder)
        return bundle if bundle.facts["settings"] == as_stored(settings) else None

    def _rows(self, networks: Sequence[str]) -> Iterator[tuple[dict[str, Any], dict[str, Any], Path]]:
        """Facts of each finished network with each of its files."""
        for place in networks:
            path = self.folder / place / FACTS
            if path.is_file():
                facts = _facts(path)
                yield from ((facts, file, self.folder / place / file["file"]) for file in facts["files"])

    def _write(self, networks: Sequence[str], timed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """front.json with what there is."""
        data, metric = self.measured
        points: list[dict[str, Any]] = []
        places = {point["name"]: place for place, point in enumerate(self._earlier)}  # numbers stay what they were
        for facts, file, path in sorted(self._rows(networks), key=lambda row: places.get(row[1]["name"], len(places))):
            times = timed.get(file["name"], {})
            points.append(
                {
                    "name": file["name"],
                    "point": len(points),
                    "network": path.parent.name,
                    "runtime": file["runtime"],
                    "int8": file["int8"],
                    **{key: facts[key] for key in ("pruned", "macs", "settings")},
                    "accuracy_before": None if file["int8"] else facts["accuracy_before"],
                    "accuracy": file["accuracy"],
                    "bytes": path.stat().st_size,
                    **{key: times.get(key) for key in ("milliseconds", "reliable")},
                    "file": path.relative_to(self.folder).as_posix(),
                }
            )
        front = front_of(points, higher_is_better=metric.higher_is_better)
        found = {
            "points": [{**point, "front": place in front} for place, point in enumerate(points)],
            **{"measure": metric.name, "unit": metric.unit, "higher_is_better": metric.higher_is_better},
            **{"split": data.held_out, "samples": len(getattr(data, data.held_out))},
            "timed": asdict(self.config),
            "machine": machine_facts(),
            "settings": self.settings,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / FRONT, found)
        return found


def _facts(path: Path) -> dict[str, Any]:
    facts = read_json(path)
    require(facts, _FORM, str(path), "remove the file, and `fineprune front` makes it again")
    found: dict[str, Any] = facts
    return found


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(a.b, value) of every entry."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{place}.{key}" if place else str(key))
    else:
        yield place, value
