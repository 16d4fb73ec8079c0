"""A recipe: the whole job as one TOML file, stage by stage. Each stage's inputs are hashed, so nothing runs twice or stale."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fineprune.common.errors import RunError, UsageError
from fineprune.common.files import read_json, sha256, write_json
from fineprune.common.progress import Lines, Progress

from . import __version__
from .arguments import check_arguments, check_progress
from .manifest import final_accuracy, measured
from .recipe import bench_config, finetune_of, job_of, read_recipe, train_config, with_point


def run(
    recipe: Path | str,
    *,
    output: Path | str | None = None,
    force: bool = False,
    trust: Collection[str] = (),
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the recipe and return its summary (also FOLDER/summary.json). Stages whose inputs and outputs are unchanged are skipped.

    trust: your own code, files and folders that the recipe may use, as it names them; UsageError lists those that are missing. device:
    where to compute, "auto" where the recipe says it.
    """
    from .trust import recipe_names, require_recipe

    check_arguments(recipe=recipe, output=output)
    check_progress(progress)
    settings = read_recipe(recipe)
    require_recipe(settings, trust, recipe, output_given=output is not None)
    settings = with_point(settings, recipe)
    folder = Path(output or settings.get("output") or Path("runs") / Path(recipe).stem)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give another run folder with --output")
    allowed = tuple(recipe_names(settings, output_given=True))
    device = settings.get("device", device) if device == "auto" else device
    return _Pipeline(settings, folder, force, allowed, device, progress or Lines()).run()


@dataclass(frozen=True)
class _Pipeline:
    settings: dict[str, Any]
    folder: Path
    force: bool
    trust: tuple[str, ...]
    """What the recipe names and the user allows: its bundle may use that, too."""
    device: str
    progress: Progress

    def run(self) -> dict[str, Any]:
        from .report import write_report

        train = self._stage("train", {**self._sources(), "train": self._table("train")}, self._train) if "train" in self.settings else None
        checkpoint = self.folder / "train" / "model.safetensors" if train else Path(self.settings["model"]["checkpoint"])
        network = {**self._sources(), "checkpoint": _file_hash(checkpoint)}
        compress = self._stage(
            "compress",
            {**network, "compress": self._table("compress"), "finetune": self._table("finetune")},
            lambda: self._compress(checkpoint),
        )
        bundle = {"bundle": _folder_hash(self.folder / "bundle")}
        export = self._stage("export", {**bundle, "export": self._table("export")}, self._export)
        files = {name: _file_hash(self.folder / name) for name in ("dense.onnx", *self._measured())}
        bench = self._stage("bench", {**bundle, **files, "bench": self._table("bench")}, self._bench) if "bench" in self.settings else None
        summary = summarise(self.folder, compress, export, bench)
        write_json(self.folder / "summary.json", summary)
        exported = [self.folder / name for name in ("compressed.onnx", *(["int8.onnx"] if "int8" in summary else []))]
        shown = {"bench": bench, "int8": summary.get("int8"), "onnx": exported, **self._table("report")}
        write_report(self.folder / "bundle", self.folder / "report.html", **shown)
        return {**summary, "details": {"train": train, "compress": compress, "export": export["compressed"], "bench": bench}}

    def _stage(self, name: str, inputs: Mapping[str, Any], work: Callable[[], tuple[dict[str, Any], list[str]]]) -> dict[str, Any]:
        """The stage's result: kept from an earlier run where its inputs and the files it wrote are unchanged, else of `work()`.

        `work` also names the files and folders that it wrote into the run folder, which may move with all that is in it.
        """
        key = _digest({"version": __version__, **inputs})
        record_path = self.folder / "stages" / f"{name}.json"
        record = _read_record(record_path)
        unchanged = (
            record is not None and record["key"] == key and all(_path_hash(self.folder / p) == h for p, h in record["outputs"].items())
        )
        if record is not None and unchanged and not self.force:
            self.progress.log(f"{name}: unchanged, kept")
            return record["result"]
        self.progress.log(f"{name}: running")
        started = self.folder / "stages" / f"{name}.started.json"
        if self.force or _read_key(started) != key:
            self._discard(name)
        write_json(started, {"key": key})
        result, outputs = work()
        record = {"key": key, "result": result, "outputs": {name: _path_hash(self.folder / name) for name in outputs}}
        write_json(record_path, {**record, "sha256": _digest(record)})
        return result

    def _discard(self, name: str) -> None:
        """A stage with new inputs must not resume from the state of the old ones (compression sees to that itself)."""
        from fineprune.models.training.state import STATE_FILE

        if name == "train":
            (self.folder / "train" / STATE_FILE).unlink(missing_ok=True)
        elif name == "compress" and self.force:
            shutil.rmtree(self.folder / "bundle.work", ignore_errors=True)

    def _table(self, name: str) -> dict[str, Any]:
        return dict(self.settings.get(name, {}))

    def _sources(self) -> dict[str, Any]:
        model = {key: value for key, value in self.settings["model"].items() if key != "checkpoint"}
        return {
            "model": model,
            "model_code": _code_hash(model["name"]),
            "data": self._table("data"),
            "data_content": _data_hash(self.settings["data"]["spec"]),
            **_named_files(self._table("data")),
        }

    def _load_data(self) -> Any:
        from fineprune.models.data import load_data

        return load_data(**self._table("data"))

    def _spec(self) -> Any:
        from fineprune.models.zoo import ModelSpec

        return ModelSpec(name=self.settings["model"]["name"], args=dict(self.settings["model"].get("args", {})))

    def _train(self) -> tuple[dict[str, Any], list[str]]:
        from fineprune.models.training.checks import check_engine

        from .training import train_network

        output = self.folder / "train"
        config = train_config(self.settings)
        if (finetuning := finetune_of(self.settings)) is not None:
            check_engine(finetuning)  # not only hours later
        facts = train_network(self._spec(), self._load_data(), config, output=output, device=self.device, progress=self.progress)
        return facts, ["train/model.safetensors"]

    def _compress(self, checkpoint: Path) -> tuple[dict[str, Any], list[str]]:
        from .compression import compress_network
        from .networks import open_model

        job = job_of(self.settings, self.device)
        data = self._load_data()
        network = open_model(self._spec(), checkpoint=checkpoint, data=data, progress=self.progress)
        bundle = compress_network(network.model, data, job, spec=network.spec, output=self.folder / "bundle", progress=self.progress)
        return bundle.facts, ["bundle"]

    def _export(self) -> tuple[dict[str, Any], list[str]]:
        from dataclasses import replace

        from fineprune.compressor.bake import dense_twin

        from .deployment import PARITY_SAMPLES, export_int8, export_network, real_samples
        from .int8 import Int8Export, int8_config
        from .networks import named_data, open_bundle

        table = self._table("export")
        network = open_bundle(self.folder / "bundle", trust=self.trust)
        count = table.get("parity_samples", PARITY_SAMPLES)
        samples = real_samples(network, count) if count else None
        how: dict[str, Any] = {"dynamic_size": table.get("dynamic_size", False), "samples": samples, "progress": self.progress}
        compressed = export_network(network, self.folder / "compressed.onnx", plain=table.get("plain", False), **how)
        dense_network = replace(network, model=dense_twin(network.model), bundle=None)
        dense = export_network(dense_network, self.folder / "dense.onnx", plain=True, **how)
        facts, files = {"compressed": compressed.to_json(), "dense": dense.to_json()}, ["compressed.onnx", "dense.onnx"]
        if (config := int8_config(table.get("int8"))) is not None:
            job, place = Int8Export(config=config, data=named_data(network)), self.folder / "int8.onnx"
            facts["int8"] = export_int8(
                network, place, job, plain=table.get("plain", False), samples=samples, progress=self.progress
            ).to_json()
            files.append(place.name)
        return facts, files

    def _bench(self) -> tuple[dict[str, Any], list[str]]:
        from .latency import bench, bench_layers, layer_rows, peers_of
        from .networks import open_bundle

        table, config = self._table("bench"), bench_config(self.settings)
        how: dict[str, Any] = {"onnx": [self.folder / name for name in self._measured()], "int8": table.get("int8", True)}
        how["progress"] = self.progress
        network = open_bundle(self.folder / "bundle", trust=self.trust)
        report = bench(network, config, peers=peers_of(table.get("peers", "all")), **how).to_json()
        layers = layer_rows(bench_layers(network, rounds=config.rounds, **how)) if table.get("layers") else {}
        return {**report, **layers}, []

    def _measured(self) -> list[str]:
        """Exported files of the compressed network, of which latency is measured."""
        int8 = self._table("export").get("int8") and self._table("bench").get("int8", True)
        return ["compressed.onnx", *(["int8.onnx"] if int8 else [])]


def summarise(folder: Path, compress: dict[str, Any], export: dict[str, Any], bench: dict[str, Any] | None) -> dict[str, Any]:
    """The figures that decide whether the compressed network is worth having, with the ones to compare them to."""
    accuracy, macs = compress["accuracy"], compress["macs"]
    final, what = final_accuracy(accuracy), f"{accuracy['split']} {measured(accuracy)}"
    latency: dict[str, dict[str, float]] = {}
    for row in bench["rows"] if bench else ():
        latency.setdefault(row["runtime"], {})[f"batch {row['batch_size']}, {row['threads']} threads"] = row["median_ms"]
    onnx_bytes = {name: export[name]["export"]["bytes"] for name in ("dense", "compressed")}
    parity, int8 = export["compressed"]["parity"], export["int8"]["int8"] if "int8" in export else None
    integers = int8["accuracy"].get("int8") if int8 else None
    first = {name: next(iter(values.values())) for name, values in latency.items()}
    table = [
        [
            "MACs, millions",
            f"{macs['macs_dense'] / 1e6:.2f}",
            f"{macs['macs'] / 1e6:.2f} ({macs['macs'] / max(macs['macs_dense'], 1):.1%})",
        ],
        [what, _percent(accuracy.get("dense")), _percent(final)],
        ["the same after equal fine-tuning", _percent(accuracy.get("dense_finetuned")), _percent(final)],
        [
            f"{what}, compressed in int8",
            _percent(None if integers is None else accuracy.get("dense")),
            _percent(integers),
        ],
        ["convolution MACs, millions", f"{macs['conv_macs_dense'] / 1e6:.2f}", f"{macs['conv_macs'] / 1e6:.2f}"],
        ["ONNX file, bytes", f"{onnx_bytes['dense']:,}", f"{onnx_bytes['compressed']:,}"],
        *(
            [what, *(f"{first[runtime]:.3f}" if runtime in first else "-" for runtime in pair)]
            for what, pair in (
                ("ONNX Runtime, ms", ("onnxruntime dense", "onnxruntime compressed")),
                ("ONNX Runtime, compressed in the engine, ms", ("onnxruntime dense", "engine compressed")),
                ("the same in int8, ms", ("onnxruntime int8", "engine compressed int8")),
            )
            if pair[1] in first
        ),
    ]
    return {
        "folder": str(folder),
        "dense_accuracy": accuracy.get("dense"),
        "compressed_accuracy": final,
        "dense_finetuned_accuracy": accuracy.get("dense_finetuned"),
        "conv_macs_kept": compress["conv_macs_kept"],
        "macs": {key: macs[key] for key in ("macs", "macs_dense", "conv_macs", "conv_macs_dense", "thesis_ops", "thesis_ops_dense")},
        "ratios": compress["ratios"],
        "parity_max_abs_error": parity["max_abs_error"] if parity else None,
        "parity": parity,
        "latency_ms": latency,
        "onnx_bytes": onnx_bytes,
        **({"int8": int8} if int8 else {}),
        "machine": (bench or compress)["machine"],
        "table": [row for row in table if row[1]],
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _read_record(path: Path) -> dict[str, Any] | None:
    """{"key", "result", "outputs"} of a stage; None where there is no such file, or not as it was written."""
    try:
        record = read_json(path)
    except RunError:
        return None
    digest = record.pop("sha256", None) if isinstance(record, dict) else None
    return record if digest is not None and digest == _digest(record) else None


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _read_key(path: Path) -> str | None:
    try:
        return read_json(path).get("key")
    except (RunError, AttributeError):
        return None


def _path_hash(path: Path) -> str:
    if path.is_dir():
        return _folder_hash(path)
    return sha256(path) if path.is_file() else "absent"


def _file_hash(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"there is no file {path}; check the recipe")
    return sha256(path)


def _folder_hash(folder: Path) -> str:
    return hashlib.sha256(json.dumps([[p.name, sha256(p)] for p in sorted(folder.iterdir()) if p.is_file()]).encode()).hexdigest()


def _code_hash(name: str) -> str | None:
    """Content of the user's own file, where NAME is file.py:factory or an ONNX file."""
    from fineprune.models.naming import is_onnx

    place = Path(name) if is_onnx(name) else Path(name.rpartition(":")[0])
    return sha256(place) if (place.suffix == ".py" or is_onnx(name)) and place.is_file() else None


def _named_files(data: Mapping[str, Any]) -> dict[str, str]:
    """Content of the files that [data] names beside its spec."""
    named = {name: data.get(name) for name in ("classes", "labels")}
    return {f"data_{name}": sha256(Path(file)) for name, file in named.items() if isinstance(file, str) and Path(file).is_file()}


def _data_hash(spec: str) -> str | None:
    """Content of a data file; names, sizes and times of a data folder's files."""
    kind, _, place = spec.partition(":")
    path = Path(kind) if kind.endswith(".py") else Path(place)
    if not place or not path.exists():
        return None
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for root, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            status = (Path(root) / name).stat()
            digest.update(f"{root}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
