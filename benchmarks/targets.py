"""Targets: are asked latencies reached, and is a searched network better than uniform and global ratios that are as fast?

    python benchmarks/targets.py prepare|time|compress|table --networks NAME ... --runs FOLDER
        [--data SPEC] [--data-arg KEY=VALUE ...] [--checkpoint NAME=FILE ...]

prepare   what each layer costs at each level, by network and precision (no times; the machine may be busy)
time      on a quiet machine: levels of each layer; latencies of REQUESTS, asked and measured; for --shares of the dense network's,
          the ratio at which uniform and global masks take as long as the searched network, measured; and what `compress` made so far
compress  the three networks of each share, by seeds and epochs (the machine may be busy)
table     of what is there so far

Every stage keeps what it has in the folder of runs, and goes on from there; several processes may compress at a time.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from shared_folder import claimed

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.copies import working_copy
from fineprune.common.errors import RunError
from fineprune.common.files import read_json, write_json
from fineprune.common.progress import Lines
from fineprune.compression import compress
from fineprune.compressor.bake import bake
from fineprune.compressor.clusters import in_clusters
from fineprune.compressor.config import PruneConfig, prune_config
from fineprune.compressor.outputs import output_layers
from fineprune.compressor.prune import CalibrationRun, ranked_layers
from fineprune.compressor.ranked import Layer
from fineprune.compressor.reconstruct.run import ReconstructConfig
from fineprune.compressor.search.levels import Level, at_levels
from fineprune.compressor.selection import select
from fineprune.deployment import opened
from fineprune.models.data import load_data
from fineprune.models.training.device import resolve_device
from fineprune.models.zoo import ModelSpec
from fineprune.models.zoo.registry import parse_args
from fineprune.networks import open_model
from fineprune.search.run import Search
from fineprune.search.target import Target
from fineprune.search.times import LayerTimes
from fineprune.unlabelled import answered

NETWORKS = {
    "resnet20": ModelSpec(name="resnet20", args={"width": 16, "shortcut": "A"}),
    "resnet32": ModelSpec(name="resnet32", args={"width": 16, "shortcut": "A"}),
    "vgg16": ModelSpec(name="vgg16", args={"width": 16}),
    "efficientnet-lite0": ModelSpec(name="efficientnet_lite0.py:lite0", args={}),
}
SHARES = (0.6, 0.4, 0.25)
"""Of the dense network's latency in ONNX Runtime: what searched, uniform and global networks are compared at."""
REQUESTS = {False: (0.7, 0.55, 0.45, 0.35, 0.28), True: (0.28, 0.24, 0.2, 0.17, 0.15)}
"""That are asked for, in float32 and in int8, whose dense network is at a third already."""
SAMPLES = 1024
METHODS = ("searched", "uniform", "global")


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    for name in arguments.networks:
        case = Case(name, arguments)
        if arguments.stage == "table":
            print(f"{name}\n{table(case)}")
        else:
            {"prepare": prepare, "time": measure, "compress": train}[arguments.stage](case)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["prepare", "time", "compress", "table"], help="What is done.")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["resnet20"], metavar="NAME", help="Of these networks.")
    parser.add_argument("--data", default="cifar10", metavar="SPEC", help="The data set, as `fineprune --data` takes it.")
    parser.add_argument("--data-arg", nargs="*", default=[], metavar="KEY=VALUE", help="Read it with these arguments.")
    parser.add_argument("--checkpoint", nargs="*", default=[], metavar="NAME=FILE", help="The weights of a network.")
    parser.add_argument("--int8", action="store_true", help="In eight-bit integers.")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="On so many threads.")
    parser.add_argument("--requests", action="store_true", help="Time what is asked for, and compare no other methods.")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), metavar="X", help="Compare at these shares.")
    parser.add_argument("--epochs", type=int, default=0, metavar="N", help="Epochs of fine-tuning.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="N", help="Seeds of calibration and fine-tuning.")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="Compress here, and find what levels cost; times are the CPU's.")
    parser.add_argument("--runs", type=Path, default=Path("runs/targets"), metavar="FOLDER", help="Keep everything in this folder.")
    return parser.parse_args()


class Case:
    """A network, its data, and what is known of it."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.arguments = name, arguments
        self.kind = f"{'int8' if arguments.int8 else 'float32'}-{arguments.threads}"
        self.folder = arguments.runs / name / self.kind
        self.found = self.folder / "found.json"

    @cached_property
    def data(self) -> Any:
        return load_data(self.arguments.data, **parse_args(self.arguments.data_arg))

    @property
    def checkpoint(self) -> str | None:
        return dict(pair.split("=", 1) for pair in self.arguments.checkpoint).get(self.name)

    @cached_property
    def search(self) -> Search:
        """Everything is measured with, and kept under, the folder of its precision."""
        data, unit = self.data, "quad" if self.arguments.int8 else "weight"
        network = open_model(NETWORKS[self.name], checkpoint=self.checkpoint, data=data, progress=Lines())
        model = working_copy(network.model, Lines()).eval()
        if not data.labelled:
            data, _ = answered(data, model, torch.device("cpu"), Lines(), training=False)
        run = CalibrationRun(
            source=data.train,
            input_shape=data.shape,
            config=CalibrationConfig(samples=SAMPLES),
            device=str(resolve_device(self.arguments.device)),
            progress=Lines(),
        )
        target = Target(int8=self.arguments.int8, threads=self.arguments.threads)
        rows = self.arguments.runs / self.name / unit / "sensitivity.json"
        rows.parent.mkdir(parents=True, exist_ok=True)
        config = prune_config("obs", fwp={"unit": unit})
        return Search(model=model, data=data, config=config, target=target, run=run, refit=ReconstructConfig(), rows=rows, progress=Lines())

    @cached_property
    def layers(self) -> list[Layer]:
        """What is ranked, with scores that are kept."""
        search, part = self.search, self.search.config.fwp
        outputs = output_layers(search.model, search.run.input_shape, [site.name for site in search.sites])
        _, layers = ranked_layers(search.model, part, search.sites, search.run, outputs)
        if not part.clusters:
            return layers
        middle = replace(part, per_layer=config_of(self, "uniform", 0.6).fwp.per_layer)
        return in_clusters(layers, middle, outputs=outputs)

    def masked(self, method: str, ratio: float) -> Any:
        """The network under the masks of a ratio, to be timed."""
        masks = select(self.layers, config_of(self, method, ratio).fwp)
        return bake(self.search.model, {"fwp": masks}, input_shape=self.search.run.input_shape)

    def asking(self, latency: str) -> Search:
        """The same search for a target, with all that is known already."""
        search = replace(self.search, target=replace(self.search.target, latency=latency))
        for known in ("sites", "masks", "errors", "times", "machine"):
            search.__dict__[known] = getattr(self.search, known)
        return search


def prepare(case: Case) -> None:
    """Errors of all layers at all levels."""
    case.search.errors.measure()


def measure(case: Case) -> None:
    """Times of layers, requests, ratios of the other methods."""
    case.folder.mkdir(parents=True, exist_ok=True)
    kept, search = case.folder / "times.json", case.search
    search.errors.measure()
    if kept.is_file():
        search.__dict__["times"] = LayerTimes.load(kept)
    else:
        search.times.save(kept)
    found: dict[str, Any] = read_json(case.found) if case.found.is_file() else {"requests": {}, "shares": {}}
    for share in REQUESTS[case.arguments.int8]:
        if str(share) not in found["requests"]:
            found["requests"][str(share)] = _request(case, share)
            write_json(case.found, found)
    for share in () if case.arguments.requests else case.arguments.shares:
        if str(share) not in found["shares"]:
            found["shares"][str(share)] = _equals(case, share)
            write_json(case.found, found)
    for _, _, _, path in _runs(case):
        if path.is_file() and "share" not in (run := read_json(path)):
            row, _ = search.machine.latency(opened(path.with_suffix("")).model)
            write_json(path, run | {"share": 1 / row.speedup})


def _request(case: Case, share: float) -> dict[str, Any]:
    """A latency asked for, and measured once more at the end."""
    search = case.asking(f"{share}x")
    try:
        found = search.found()
    except RunError as error:
        return {"refused": str(error)}
    row, _ = case.search.machine.latency(search.masked(found.levels))
    return {**found.facts, "again": 1 / row.speedup, "reliable": row.reliable}


def _equals(case: Case, share: float) -> dict[str, Any]:
    """The levels that are found, and for the other methods the ratio that measures alike."""
    search = case.asking(f"{share}x")
    try:
        found = search.found()
    except RunError as error:
        return {"refused": str(error)}
    target = 1 / case.search.machine.latency(search.masked(found.levels))[0].speedup
    ratios = {method: _ratio(case, method, target) for method in METHODS[1:]}
    return {"searched": {"levels": found.facts["levels"], "share": target, "error": found.facts["error"]}, **ratios}


def _ratio(case: Case, method: str, target: float) -> dict[str, Any]:
    """By halves, until within 2 % or eight networks were timed; of a small layer time and ratio are no line."""
    low, high = 0.0, 0.98
    tried = list[dict[str, Any]]()
    for _ in range(8):
        ratio = (low + high) / 2
        share = 1 / case.search.machine.latency(case.masked(method, ratio))[0].speedup
        tried.append({"ratio": ratio, "share": share})
        if abs(share / target - 1) <= 0.02:
            break
        low, high = (ratio, high) if share > target else (low, ratio)
    return min(tried, key=lambda one: abs(one["share"] / target - 1))


def config_of(case: Case, method: str, ratio: float) -> PruneConfig:
    """Uniform: every layer loses that share of its weights. Global: one list of all layers by error per multiply-add, the default."""
    if method == "global":
        return prune_config("obs", ratio=ratio, fwp={"unit": case.search.config.fwp.unit})
    return at_levels(case.search.config, {site.name: Level(fwp=ratio) for site in case.search.sites}, case.search.sites)


def train(case: Case) -> None:
    """The networks of each share, compressed."""
    shares = read_json(case.found)["shares"]
    for share, method, seed, path in _runs(case):
        if "refused" in shares.get(share, {"refused": None}):
            continue
        with claimed(path.with_suffix(".lock")) as mine:
            if mine and not path.is_file():
                _compressed(case, shares[share][method], method, seed, path)


def _compressed(case: Case, facts: dict[str, Any], method: str, seed: int, path: Path) -> None:
    """At the levels or the ratio that were found; `path` gets its figures, the folder of that name the bundle."""
    settings: dict[str, Any] = {"unit": case.search.config.fwp.unit}
    if method == "searched":
        levels = {name: Level(**level) for name, level in facts["levels"].items()}
        settings["per_layer"] = at_levels(case.search.config, levels, case.search.sites).fwp.per_layer
    elif method == "uniform":
        settings["per_layer"] = config_of(case, method, facts["ratio"]).fwp.per_layer
    options: dict[str, Any] = {"prune": facts["ratio"]} if method == "global" else {}
    network, given = NETWORKS[case.name], case.arguments
    options |= {"epochs": given.epochs, "seed": seed, "device": given.device, "checkpoint": case.checkpoint}
    bundle = compress(network.name, case.data, model_args=network.args, fwp=settings, output=path.with_suffix(""), **options)
    write_json(path, {"accuracy": bundle.facts["accuracy"], "kept": bundle.facts["conv_macs_kept"]})


def _runs(case: Case) -> Iterator[tuple[str, str, int, Path]]:
    """Share, method, seed and file of each run, the first seed of all before the second."""
    for seed in case.arguments.seeds:
        for share in case.arguments.shares:
            for method in METHODS:
                yield str(share), method, seed, case.folder / f"{method}-{share}-{case.arguments.epochs}-{seed}.json"


def table(case: Case) -> str:
    """Requests, then accuracies by share and method."""
    found = read_json(case.found)
    lines = ["| asked | found | again | within |", "|---|---|---|---|"]
    for share, facts in found["requests"].items():
        if "refused" in facts:
            lines.append(f"| {share} | {facts['refused']} | | |")
            continue
        at = facts["measured_ms"] / facts["reference_ms"]
        lines.append(f"| {share} | {at:.3f} | {facts['again']:.3f} | {facts['again'] / float(share) - 1:+.1%} |")
    lines += ["", "| share | method | measured | kept | masked, refitted | after epochs |", "|---|---|---|---|---|---|"]
    values: dict[tuple[str, str], list[Any]] = {}
    for share, method, _, path in _runs(case):
        if path.is_file():
            values.setdefault((share, method), []).append(read_json(path))
    for (share, method), runs in values.items():

        def each(of: Callable[[Any], Any], runs: list[Any] = runs) -> str:
            return ", ".join("" if of(run) is None else f"{of(run):.2%}" for run in runs)

        at = ", ".join(f"{run['share']:.3f}" if "share" in run else "" for run in runs)
        before = each(lambda run: run["accuracy"].get("batchnorm_recalibrated") or run["accuracy"].get("reconstructed"))
        after = each(lambda run: run["accuracy"].get("finetuned"))
        lines.append(f"| {share} | {method} | {at} | {each(lambda run: run['kept'])} | {before} | {after} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
