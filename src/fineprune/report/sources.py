"""What a page is made of: a bundle, and the files of other commands that stand beside it. Read and checked here, and only read later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import UsageError
from fineprune.common.files import read_json
from fineprune.common.form import Maybe, Within, require
from fineprune.common.text import printable
from fineprune.compressor.bundle import Bundle

from ..manifest import check_facts, check_latencies, measured, read_bundle
from ..pareto.points import FORM, front_file

_NUMBER = Within(float, -1e18, 1e18)
_SENSITIVITY = {
    **{"measure": Maybe(str), "unit": Maybe(str), "higher_is_better": Maybe(bool)},
    "rows": [
        {
            "layer": str,
            "level": {str: _NUMBER},
            **dict.fromkeys(("kept", "error", "accuracy", "loss", "milliseconds", "milliseconds_dense"), Maybe(_NUMBER)),
        }
    ],
}
_INT8 = {
    "accuracy": {
        "split": str,
        "samples": Within(int, 0, 2**31),
        **dict.fromkeys(("int8", "float32"), Maybe(_NUMBER)),
        **dict.fromkeys(("measure", "unit"), Maybe(str)),
    }
}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Checked. bench: a BenchmarkReport as JSON, with `layers` and `layers_int8` where they were measured; int8: what an int8 file cost;
    file_bytes: sizes of ONNX files by "dense", "compressed" and "compressed int8"; statistics: by kind; sensitivity, front: what the
    commands of these names write. What is not there is None or empty."""

    bundle: Bundle
    bench: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None
    file_bytes: Mapping[str, float] = field(default_factory=dict)
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    sensitivity: dict[str, Any] | None = None
    front: dict[str, Any] | None = None

    @classmethod
    def gathered(
        cls,
        bundle: Bundle | Path | str,
        *,
        bench: Mapping[str, Any] | Path | str | None = None,
        int8: dict[str, Any] | None = None,
        onnx: Sequence[Path | str] = (),
        statistics: Path | str | None = None,
        sensitivity: Mapping[str, Any] | Path | str | None = None,
        front: Mapping[str, Any] | Path | str | None = None,
    ) -> Self:
        """Files are named or given as what they hold; UsageError for one that is not there, RunError for one of another form."""
        from ..compression import read_statistics

        bundle = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
        check_facts(bundle, "the bundle")
        latencies, where = _read(bench, "fineprune bench BUNDLE --json")
        if latencies is not None:
            check_latencies(latencies, where)
        sizes, cost = _exported(onnx)
        known = dict(latencies.get("file_bytes") or {}) if latencies else {}
        return cls(
            bundle=bundle,
            bench=latencies,
            int8=int8 or cost,
            file_bytes=known | sizes,
            statistics=read_statistics(statistics),
            sensitivity=_formed(sensitivity, _SENSITIVITY, "fineprune sensitivity"),
            front=_formed(front_file(front) if isinstance(front, Path | str) else front, FORM, "fineprune front"),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The bundle's manifest."""
        return self.bundle.facts

    @property
    def accuracy(self) -> dict[str, Any]:
        """What was measured after each step."""
        found: dict[str, Any] = self.facts["accuracy"]
        return found

    @property
    def measure(self) -> str:
        """What `accuracy` holds: an accuracy, or what stands for it."""
        return measured(self.accuracy)

    @property
    def heading(self) -> str:
        """`measure` as a title: a name with capitals of its own stays as it is."""
        return self.measure.capitalize() if self.measure.islower() else self.measure

    @property
    def weights(self) -> tuple[int, int]:
        """Those of layers that multiply, and how many of them masks keep."""
        layers = [layer for layer in self.facts["macs"]["layers"] if layer.get("weights")]
        counts = [sum(layer.get(key) or 0 for layer in layers) for key in ("weights", "weights_kept")]
        return counts[0], counts[1]

    @property
    def name(self) -> str:
        """Of the network."""
        return printable(self.facts["model"]["name"]) if self.facts.get("model") else "network"


def _read(given: Mapping[str, Any] | Path | str | None, command: str) -> tuple[Any, Path]:
    """What a file holds, and where errors say that it stands."""
    if given is None or isinstance(given, Mapping):
        return given, Path("what is given")
    if not Path(given).is_file():
        raise UsageError(f"there is no file {given}; write it by `{command}`")
    return read_json(given), Path(given)


def _formed(given: Mapping[str, Any] | Path | str | None, form: Any, command: str) -> dict[str, Any] | None:
    value, where = _read(given, command)
    if value is not None:
        require(value, form, str(where), f"it was not written by `{command}`, or was edited; write it again")
    return None if value is None else dict(value)


def _exported(files: Sequence[Path | str]) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Sizes of exported files, and what int8 cost, which `fineprune export --int8` leaves beside its file."""
    from fineprune.export.parity import is_int8

    sizes: dict[str, float] = {}
    cost = None
    for file in map(Path, files):
        if not file.is_file():
            raise UsageError(f"there is no file {file}; write it by `fineprune export BUNDLE --output {file}`")
        name = "compressed int8" if is_int8(file) else "compressed"
        if name in sizes:
            raise UsageError(f"{file} is a second {'int8' if name.endswith('int8') else 'float32'} file of the network; give one of each")
        sizes[name] = file.stat().st_size
        beside = Path(f"{file}.int8.json")
        if name.endswith("int8") and beside.is_file():
            cost = _formed(beside, _INT8, "fineprune export --int8")
    return sizes, cost
