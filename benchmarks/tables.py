"""The source's tables with our figures beside: any cell, with its settings, at a share of its epochs.

    python benchmarks/tables.py --table 5.2 [--cell NETWORK:METHOD ...] [--epochs-share R] [--data SPEC] [--checkpoint NETWORK=FILE ...]
                                [--network-arg KEY=VALUE ...] [--samples N] [--seeds N ...] [--latency] [--quick] [--json FILE]
                                [--plot FILE] [--runs FOLDER]

baseline            the network trained densely, from which the others start; a checkpoint takes the place of its training
asl, fpgm           `--method`: asl at the pruned share that the source reports, fpgm at its rate of 0.4
NAME+15, NAME+30    the same with 15 or 30 % of the blocks on top, ranked as the source does (`--preset thesis --ffp`)
moderate, strong    the preset thesis, FFP 20 or 37 %, weights for what is left of the share that the source reports
ours, ours-quad     what `fineprune compress --prune` does with the share of `strong` (or --prune), by weights or quads, beside the source's
ffp-l1, ffp-apoz    blocks alone by a criterion of `fineprune methods`, so many as the share says
NAME@R, NAME@R+15   the same at a share or rate of R: fpgm@0.3, lamp@0.5 (any method), ours@0.72
NAME+15:CRITERION   with blocks on top that this criterion ranks, in one list of all layers: fpgm+15:obs
ALGORITHM-M         (tables 4) an algorithm of the parameter server with M workers, simulated
regular, pruned, pruned+auto   (table 3) without and with data pruning, and with the automatic learning rate

Every cell ends in a file of its own in the folder of runs and resumes where it was interrupted. Epochs, and the milestones of their
schedule, are the source's times --epochs-share, and are printed. --network-arg width=16 makes other networks, and the table says so.
--quick takes scikit-learn's digits, narrow networks and an epoch or two, to see that all of it runs: its accuracies mean nothing.
--latency times the networks of each table beside each other, in the engine, float32 and int8, and the dense one in ONNX Runtime, too.
"""

import argparse
import hashlib
import json
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from shared_folder import add_options, claimed
from tables_source import FFP, FPGM_RATE, TABLES, Table

from fineprune.common.files import read_json, write_bytes, write_json
from fineprune.common.progress import Lines
from fineprune.compression import compress
from fineprune.compressor.bundle import Bundle
from fineprune.deployment import opened
from fineprune.export.benchmark import BenchmarkConfig
from fineprune.export.machine import machine_facts
from fineprune.models.data import ImageData, load_data
from fineprune.models.training import TrainConfig, evaluate, train
from fineprune.models.zoo import ModelSpec
from fineprune.models.zoo.registry import parse_args
from fineprune.networks import open_model
from fineprune.pareto.files import Files, latencies
from fineprune.pareto.picture import front_figure
from fineprune.pictures import write_picture

BASELINE = "baseline"
OURS: Mapping[str, Mapping[str, Any]] = {"ours": {}, "ours-quad": {"fwp": {"unit": "quad"}}}
"""Beside the share."""
_NAME = re.compile(r"([^@+]+)(?:@(0?\.\d+))?(?:\+(\d{1,2})(?::([\w-]+))?)?")
ON_TOP = " + blocks"
MARKERS = "osD^vPX*<>"
"""One for each method of a picture."""
QUICK = 1 / 80
"""Share of the epochs: two of a training, as many as the automatic rate needs to compare losses."""


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    cells = chosen(arguments)
    if not arguments.collect:
        data = load_data(arguments.data)
        for cell in cells:
            cell.run(data)
        if arguments.latency:
            times = timed(cells, data)
            write_json(times_of(arguments), {"machine": machine_facts(), "points": times})
    print(shown := table(cells))
    if arguments.plot:
        draw(arguments.plot, cells)
    if arguments.markdown:
        write_bytes(arguments.markdown, f"{shown}\n".encode())
    if arguments.json:
        runs = [read_json(cell.path) for cell in cells if cell.path.is_file()]
        write_json(
            arguments.json, {"machine": machine_facts(), "table": arguments.table, "title": TABLES[arguments.table].title, "runs": runs}
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=list(TABLES), required=True, help="Make this table.")
    parser.add_argument(
        "--cell", nargs="+", metavar="NETWORK:METHOD", help="Make only these cells, or any others of its networks and methods."
    )
    parser.add_argument("--data", metavar="SPEC", help="The data set, as `fineprune --data` takes it (default: the table's).")
    parser.add_argument(
        "--checkpoint", nargs="*", default=[], metavar="NETWORK=FILE", help="Weights in place of the training of a baseline."
    )
    parser.add_argument(
        "--network-arg", nargs="*", default=[], metavar="KEY=VALUE", help="Give networks these arguments, not the source's."
    )
    parser.add_argument("--epochs-share", type=float, metavar="R", help="Train for this share of the source's epochs (default: all).")
    parser.add_argument("--prune", type=float, metavar="R", help="The share that `asl` and `ours` prune (default: the source's).")
    parser.add_argument("--samples", type=int, metavar="N", help="Rank by so many images, where images decide (default: all).")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="Seeds of every cell.")
    parser.add_argument("--device", default="auto", help="Where to train, as `fineprune --device` takes it.")
    parser.add_argument("--latency", action="store_true", help="Time what was made.")
    parser.add_argument("--quick", action="store_true", help="Digits, narrow networks, an epoch: under five minutes for one network.")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Draw accuracy by latency, of what --latency timed (.svg or .png).")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="Write the table into this file, too.")
    add_options(parser, "tables")
    arguments = parser.parse_args()
    whole = TABLES[arguments.table]
    arguments.data = arguments.data or ("digits" if arguments.quick else whole.data)
    arguments.epochs_share = arguments.epochs_share or (QUICK if arguments.quick else 1.0)
    networks = {cell.partition(":")[0] for cell in whole.cells}
    arguments.cell = arguments.cell or [cell for cell in whole.cells if not arguments.quick or cell.startswith(f"{min(networks)}:")]
    for cell in arguments.cell:
        if cell.partition(":")[0] not in networks:
            parser.error(f"--cell {cell}: table {arguments.table} has {', '.join(sorted(networks))}")
        if whole.retrained is None and cell not in whole.cells:
            parser.error(f"--cell {cell}: table {arguments.table} has {', '.join(whole.cells)}")
        if whole.retrained is not None:
            try:
                Parts.of(cell.partition(":")[2])
            except ValueError as error:
                parser.error(f"--cell {cell}: {error}")
    if (arguments.latency or arguments.plot) and whole.retrained is None:
        parser.error(f"table {arguments.table} compares trainings of the same networks; leave --latency and --plot out")
    if arguments.plot and not arguments.latency and not times_of(arguments).is_file():
        parser.error("--plot draws what --latency timed; give it, too")
    return arguments


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the name of a method that compresses asks for: METHOD[@SHARE][+BLOCKS[:CRITERION]]."""

    method: str
    share: float | None = None
    on_top: float | None = None
    criterion: str | None = None

    @classmethod
    def of(cls, name: str) -> "Parts":
        """ValueError for a name of another form."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"a method is NAME, NAME@0.5, NAME+15 or NAME+15:CRITERION, got {name}")
        method, share, percent, criterion = found.groups()
        return cls(
            method=method,
            share=float(share) if share else None,
            on_top=int(percent) / 100 if percent else None,
            criterion=criterion,
        )

    @property
    def blocks(self) -> dict[str, Any]:
        """Arguments of `compress` for those on top."""
        if self.on_top is None:
            return {}
        ranked = {"ratio": self.on_top, "criterion": self.criterion, "scope": "global"}
        return {"preset": "thesis", "ffp": ranked if self.criterion else self.on_top}

    @property
    def series(self) -> str:
        """Of a picture: whatever the shares."""
        by = f" by {self.criterion}" if self.criterion else ""
        return self.method if self.on_top is None else f"{self.method}{ON_TOP}{by}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of a table, of one seed."""

    name: str
    """NETWORK:METHOD."""
    seed: int
    source: Table
    arguments: argparse.Namespace

    @property
    def network(self) -> str:
        """Its first half."""
        return self.name.partition(":")[0]

    @property
    def method(self) -> str:
        """Its second half."""
        return self.name.partition(":")[2]

    @property
    def spec(self) -> ModelSpec:
        """The network's, of the source's widths or those that are given."""
        given = parse_args(self.arguments.network_arg)
        narrow = {"width": 8} if self.arguments.quick and "width" in self.source.arguments else {}
        return ModelSpec(name=self.source.prefix + self.network, args={**self.source.arguments, **narrow, **given})

    @property
    def checkpoint(self) -> Path | None:
        """That the user gives."""
        found = dict(pair.split("=", 1) for pair in self.arguments.checkpoint).get(self.network)
        return None if found is None else Path(found)

    @property
    def dense(self) -> "Cell":
        """From which it starts."""
        return Cell(name=f"{self.network}:{BASELINE}", seed=self.seed, source=self.source, arguments=self.arguments)

    @cached_property
    def parts(self) -> Parts:
        """Of the method's name."""
        return Parts.of(self.method)

    @property
    def pruned(self) -> float:
        """The share of the multiply-adds that the source prunes here."""
        strongest = max(spared or 0.0 for name, (_, spared) in self.source.cells.items() if name.startswith(f"{self.network}:"))
        spared = self.source.cells.get(self.name, (None, None))[1]
        return self.parts.share or self.arguments.prune or (spared or strongest) / 100

    @property
    def masks(self) -> dict[str, Any] | None:
        """Arguments of `compress`; None where nothing is compressed."""
        if self.source.retrained is None or self.method == BASELINE:
            return None
        method = self.parts.method
        if method in OURS:
            return {"prune": self.pruned, **OURS[method]}
        if method in FFP:
            ffp = FFP[method]
            return {"preset": "thesis", "ffp": ffp, "fwp": 1 - (1 - self.pruned) / (1 - ffp)}
        if method.startswith("ffp-"):
            return {"preset": "thesis", "ffp": {"ratio": self.pruned, "criterion": method.removeprefix("ffp-")}, "fwp": 0.0}
        reported = self.source.cells.get(f"{self.network}:{method}", (None, None))[1]
        rate = self.parts.share or (FPGM_RATE if method == "fpgm" else self.arguments.prune)
        return {"method": method, "rate": rate or (reported / 100 if reported else self.pruned), **self.parts.blocks}

    @property
    def samples(self) -> int | None:
        """That calibrate; a method without blocks ranks by weights alone."""
        return None if set(self.masks or ()) <= {"method", "rate"} else self.arguments.samples

    @property
    def training(self) -> TrainConfig:
        """The source's settings, in so many epochs."""
        whole = self.source.trained if self.masks is None else {**(self.source.retrained or {}), **self.arguments.training}
        settings = {**scaled(whole, self.arguments.epochs_share), "seed": self.seed}
        algorithm, _, workers = self.method.rpartition("-")
        if algorithm and workers.isdecimal():
            settings["asynchronous"] = {"algorithm": algorithm, "workers": int(workers)}
        if self.method.startswith("pruned"):
            settings["policy"] = "fine-pruning"
        if self.method == "pruned+auto":
            settings |= {"schedule": "auto", "milestones": ()}
        return TrainConfig(**settings)

    @cached_property
    def asked(self) -> dict[str, Any]:
        """All that decides the figure."""
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        given: dict[str, Any] = {"data": self.arguments.data, "checkpoint": checkpoint, "table": self.arguments.table}
        if self.samples is not None:
            given["samples"] = self.samples
        return {**given, "model": self.spec.to_json(), "masks": self.masks, "training": self.training.to_json(), "seed": self.seed}

    @property
    def path(self) -> Path:
        """Of its file; what it made lies in the folder of the same name."""
        key = hashlib.sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()[:8]
        found: Path = self.arguments.runs / f"{self.name.replace(':', '_')}-{self.seed}-{key}.json"
        return found

    @property
    def folder(self) -> Path:
        """The bundle, or the state of the training."""
        return self.path.with_suffix("")

    @property
    def weights(self) -> Path:
        """Of a dense network."""
        return self.checkpoint or self.folder / "model.safetensors"

    def run(self, data: ImageData) -> None:
        """Unless its file is there, or another process that shares the folder is at it."""
        if self.masks is not None:
            self.dense.run(data)
        with claimed(self.path.with_suffix(".lock")) as mine:
            if not mine or self.path.is_file():
                return
            training = self.training
            print(f"{self.name}, seed {self.seed}: {training.epochs} epochs, {self.masks or 'dense'}", flush=True)
            started = time.perf_counter(), time.process_time()
            found = self._trained(data, training) if self.masks is None else self._compressed(data, training)
            spent = {"seconds": time.perf_counter() - started[0], "processor_seconds": time.process_time() - started[1]}
            write_json(self.path, {**self.asked, "cell": self.name, **found, **spent, "machine": machine_facts()})

    def _trained(self, data: ImageData, training: TrainConfig) -> dict[str, Any]:
        network = open_model(self.spec, checkpoint=self.checkpoint, data=data, progress=Lines())
        saved = None
        if self.checkpoint is None:
            result = train(network.model, data, training, output=self.folder, device=self.arguments.device, progress=Lines())
            saved = result.to_json()["saving"]
            save_file(network.model.state_dict(), self.weights)
        accuracy = evaluate(network.model, data.test, device=self.arguments.device).accuracy
        return {"accuracy": accuracy, "spared": None if saved is None else saved["measured_cpu"]}

    def _compressed(self, data: ImageData, training: TrainConfig) -> dict[str, Any]:
        where: dict[str, Any] = {"checkpoint": self.dense.weights, "output": self.folder, "device": self.arguments.device}
        settings: dict[str, Any] = {"finetune": training, "seed": self.seed, "samples": self.samples}
        bundle = compress(self.spec, data, **settings, **where, **(self.masks or {}))
        facts = bundle.facts["accuracy"]
        return {"accuracy": facts["finetuned"], "dense": facts["dense"], "spared": 1 - bundle.facts["conv_macs_kept"]}


def scaled(settings: Mapping[str, Any], share: float) -> dict[str, Any]:
    """The same schedule in a share of the epochs, at least one; milestones that fall together stay one, without any the rate stays."""
    epochs = max(1, round(settings["epochs"] * share))
    found = {**settings, "epochs": epochs}
    if settings["schedule"] == "multistep":
        found["milestones"] = tuple(sorted({max(1, round(epoch * share)) for epoch in settings["milestones"]} - {epochs}))
        found["schedule"] = "multistep" if found["milestones"] else "constant"
    else:
        found.pop("milestones", None)
    return found


def chosen(arguments: argparse.Namespace) -> list[Cell]:
    """Seeds outermost."""
    source = TABLES[arguments.table]
    return [Cell(name=name, seed=seed, source=source, arguments=arguments) for seed in arguments.seeds for name in arguments.cell]


def timed(cells: list[Cell], data: ImageData) -> list[dict[str, Any]]:
    """Milliseconds of the first seed's networks, all in turns: in float32 and int8, dense ones in ONNX Runtime, too."""
    masked = [cell for cell in cells if cell.seed == cells[0].seed and cell.masks is not None]
    dense = {cell.network: cell.dense for cell in masked}
    files, points = Files(data=data, int8=True, device="cpu", progress=Lines()), list[tuple[dict[str, Any], Path]]()
    for cell in [*dense.values(), *masked]:
        place = cell.folder / "files"
        place.mkdir(parents=True, exist_ok=True)
        if cell.masks is None:
            network = open_model(cell.spec, checkpoint=cell.weights, data=data, progress=Lines())
            rows = [{**row, "name": f"{cell.network} {row['name']}"} for row in files.dense(network, place)]
        else:
            names = (cell.name, f"{cell.name} int8")
            rows = files.in_engine(opened(Bundle.load(cell.folder)), place, names, read_json(cell.path)["accuracy"])
        points += [({**row, "run": cell.path.name}, place / row["file"]) for row in rows]
    times = latencies(points, data.input_shape, BenchmarkConfig(), Lines())
    return [{**point, **times.get(point["name"], {})} for point, _ in points]


def times_of(arguments: argparse.Namespace) -> Path:
    """The file of what --latency measured."""
    networks = "-".join(sorted({cell.partition(":")[0] for cell in arguments.cell}))
    found: Path = arguments.runs / f"{arguments.table}-{networks}-latency.json"
    return found


def draw(path: Path, cells: list[Cell]) -> None:
    """Accuracy by latency of the first seed's cells: a line for each method, dashed in int8; of a table's first network."""
    facts, own = read_json(times_of(cells[0].arguments)), {cell.path.name: cell for cell in cells if cell.network == cells[0].network}
    own |= {cell.dense.path.name: cell for cell in own.values()}
    points = [{**point, "name": point["name"].removeprefix(f"{cells[0].network} ")} for point in facts["points"] if point["run"] in own]
    methods = list(dict.fromkeys(cell.parts.method for cell in own.values()))

    def style(series: str) -> dict[str, Any]:
        method, *on_top = series.split(ON_TOP)
        number = methods.index(method)
        return {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)], "alpha": 0.5 if on_top else 1.0}

    title = f"{cells[0].network}, {cells[0].training.epochs} epochs; {facts['machine']['cpu']}"
    write_picture(
        front_figure({**facts, "points": points}, series=lambda point: own[point["run"]].parts.series, style=style, title=title), path
    )


def table(cells: list[Cell]) -> str:
    """Markdown: ours beside the source's; spared is of the multiply-adds, or of the time in tables of trainings."""
    first, runs = cells[0], dict[str, list[dict[str, Any]]]()
    for cell in cells:
        if cell.path.is_file():
            runs.setdefault(cell.name, []).append(read_json(cell.path))
    epochs = " + ".join(str(cell.training.epochs) for cell in [first.dense, *[cell for cell in cells if cell.masks][:1]])
    kept, timed_runs = times_of(first.arguments), dict[str, list[dict[str, Any]]]()
    for point in read_json(kept)["points"] if kept.is_file() else ():
        timed_runs.setdefault(point["run"], []).append(point)
    lines = [
        f"Table {first.arguments.table}: {first.source.title}. Ours: {first.arguments.data}, {epochs} epochs, {first.spec.args or ''}.",
        "",
        "| network | method | accuracy | points to dense | spared | source: accuracy | spared | ms | ms, int8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in (cell for cell in cells if cell.seed == first.seed):
        found = runs.get(cell.name, [])
        reported, spared = first.source.cells.get(cell.name, (None, None))
        lost = [100 * (run["accuracy"] - run["dense"]) for run in found if "dense" in run]
        own = [100 * run["spared"] for run in found if run["spared"] is not None]
        times = {point["int8"]: point.get("milliseconds") for point in timed_runs.get(cell.path.name, ()) if cell.masks}
        columns = [mean([100 * run["accuracy"] for run in found]), mean(lost, "+.2f"), mean(own, ".1f")]
        columns += ["" if reported is None else f"{reported:.2f}", "" if spared is None else f"{spared:.1f}"]
        columns += [f"{times[int8]:.3f}" if times.get(int8) else "" for int8 in (False, True)]
        lines.append(f"| {cell.network} | {cell.method} | {' | '.join(columns)} |")
    dense = {cell.dense.path.name: None for cell in cells if cell.masks is not None}
    points = [point for run in dense for point in timed_runs.get(run, ()) if "milliseconds" in point]
    lines += ["", *(f"{point['name']}: {point['accuracy']:.2%}, {point['milliseconds']:.3f} ms" for point in points)]
    return "\n".join(lines).rstrip()


def mean(values: list[float], form: str = ".2f") -> str:
    """With every value behind it where there are several; of no values nothing."""
    each = f" ({', '.join(format(value, form) for value in values)})" if len(values) > 1 else ""
    return format(statistics.mean(values), form) + each if values else ""


if __name__ == "__main__":
    main()
