"""Accuracy at equal latency: what benchmarks/recipes.py compressed, exported and timed in one run beside the dense network and stock int8.

    python benchmarks/front.py --runs FOLDER --epochs N --data SPEC --checkpoint FILE [--json FILE] [--plot FILE] [--draw]

Each bundle of those epochs runs in the engine, in float32 and in int8; so does the dense network, which runs in ONNX Runtime, too, there in
int8 as that quantises it (256 training images choose all ranges). All take turns, at batch 1; latencies are medians. Accuracies are of the
test split: of a bundle as its run measured it, of int8 as measured here. --draw only draws the JSON file again.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from fineprune.common.files import read_json, write_json
from fineprune.common.progress import Lines, Silent
from fineprune.compressor.bundle import Bundle
from fineprune.deployment import opened, to_onnx
from fineprune.export.benchmark import BenchmarkConfig, benchmark
from fineprune.export.engine.run.runtime import EngineRuntime
from fineprune.export.exporter import export_onnx
from fineprune.export.int8.quantiser import Int8Config
from fineprune.export.machine import machine_facts
from fineprune.export.peers.int8 import quantise
from fineprune.export.runtimes import OnnxRuntime, Runtime
from fineprune.int8 import Int8Export, quantiser_of
from fineprune.models.data import ImageData, Split, load_data
from fineprune.models.zoo import ModelSpec
from fineprune.models.zoo.registry import parse_args
from fineprune.networks import open_model
from fineprune.pictures import write_picture
from recipes import DENSE, last

KINDS = {"blocks": "#1f5f8b", "channel": "#7a5ea8", "group": "#3a8f5c", "quad": "#e8a33d", "weights": "#a3123a"}
"""What is masked -> colour; the recipe's name holds it, and without any it is single weights."""
MARKERS = "o^svPXd"
"""One for each recipe of a kind."""
REFERENCES = {"dense, ONNX Runtime": "s", "dense, engine": "D", "int8, ONNX Runtime": "*", "int8, engine": "P"}
"""The dense network, and its marker."""
INT8_IMAGES = 256


def main() -> None:
    arguments = _parse()
    if not arguments.draw:
        torch.set_num_threads(1)
        write_json(arguments.json, measure(arguments))
    found = read_json(arguments.json)
    for point in found["points"]:
        print(f"{point['name']:36s} {point['pruned']:6.1%} {point['milliseconds']:8.3f} ms {point['accuracy']:8.2%}")
    if arguments.plot:
        draw(arguments.plot, found)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"), metavar="FOLDER", help="The folder of runs of recipes.py.")
    parser.add_argument("--epochs", type=int, default=0, metavar="N", help="Take the runs of so many epochs of fine-tuning.")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Take the runs of this seed.")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="Take only runs of these recipes.")
    parser.add_argument("--data", default="cifar10", metavar="SPEC", help="The data set, as `fineprune --data` takes it.")
    parser.add_argument("--model", default="resnet20", metavar="NAME", help="The network that was compressed.")
    parser.add_argument(
        "--model-args", nargs="*", default=["width=16", "shortcut=A"], metavar="KEY=VALUE", help="Build it with these arguments."
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="Load its trained weights from this file.")
    parser.add_argument("--rounds", type=int, default=25, metavar="N", help="Time each runtime in so many turns.")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="Write all figures into this JSON file.")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Draw them into this file (.svg or .png).")
    parser.add_argument("--draw", action="store_true", help="Measure nothing, and draw what the JSON file holds.")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Points of latency and accuracy, and what they were measured on."""
    data = load_data(arguments.data)
    spec = ModelSpec(name=arguments.model, args=parse_args(arguments.model_args))
    dense = open_model(spec, checkpoint=arguments.checkpoint, data=data, progress=Silent()).model.eval()
    points: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="fineprune-front-") as folder:
        plain, int8 = Path(folder) / "dense.onnx", Path(folder) / "int8.onnx"
        export_onnx(dense, data.input_shape, plain)
        quantise(plain, int8, _images(data.train, INT8_IMAGES))
        runtimes: list[Runtime] = [OnnxRuntime("dense, ONNX Runtime", plain), EngineRuntime("dense, engine", plain)]
        runtimes.append(OnnxRuntime("int8, ONNX Runtime", int8))
        runtimes.append(_int8("int8, engine", dense, Path(folder) / "dense.int8.onnx", data))
        accuracy = {runtime.name: _accuracy(runtime, data.test) for runtime in runtimes[-2:]}
        for run in _runs(arguments):
            if run["recipe"] == DENSE:
                continue
            name = f"{run['recipe']} {run['prune']:.0%}"
            bundle = Bundle.load(arguments.runs / "work" / "{recipe}-{prune:g}-{epochs}-{seed}".format(**run))
            path = Path(folder) / f"{len(points)}.onnx"
            to_onnx(bundle, path, samples=torch.from_numpy(_images(data.test, 16)), progress=Lines())
            runtimes.append(EngineRuntime(name, path))
            facts = {"recipe": run["recipe"], "pruned": 1 - bundle.facts["conv_macs_kept"]}
            points[name] = {**facts, "accuracy": last(run)}
            runtimes.append(_int8(f"{name} int8", opened(bundle).model, path.with_suffix(".int8.onnx"), data))
            points[f"{name} int8"] = {**facts, "accuracy": _accuracy(runtimes[-1], data.test), "int8": True}
        trained = [last(run) for run in _runs(arguments) if run["recipe"] == DENSE]
        exact = trained[0] if trained else _accuracy(runtimes[0], data.test)
        accuracy |= {"dense, ONNX Runtime": exact, "dense, engine": exact}
        points |= {name: {"recipe": DENSE, "pruned": 0.0, "accuracy": value} for name, value in accuracy.items()}
        config = BenchmarkConfig(batch_sizes=(1,), threads=(1,), rounds=arguments.rounds)
        rows = benchmark(runtimes, data.input_shape, config, progress=Lines()).to_json()["rows"]
    for row in rows:
        points[row["runtime"]] |= {"name": row["runtime"], "milliseconds": row["median_ms"]}
    return {"epochs": arguments.epochs, "seed": arguments.seed, "points": list(points.values()), "machine": machine_facts()}


def _int8(name: str, model: nn.Module, path: Path, data: ImageData) -> Runtime:
    """The engine on the network's int8 file, which is written to `path`."""
    job = Int8Export(config=Int8Config(images=INT8_IMAGES), data=data)
    export_onnx(model.cpu().eval(), data.input_shape, path, int8=quantiser_of(job, Silent()))
    return EngineRuntime(name, path)


def _runs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Those of the epochs and the seed, by recipe and share."""
    runs = [read_json(path) for path in sorted(arguments.runs.glob("*.json"))]
    chosen = [run for run in runs if run["epochs"] == arguments.epochs and run["seed"] == arguments.seed]
    return [run for run in chosen if not arguments.recipes or run["recipe"] in (DENSE, *arguments.recipes)]


def _images(split: Split, count: int) -> np.ndarray:
    return next(iter(split.batches(count))).images.numpy()


def _accuracy(runtime: Runtime, split: Split) -> float:
    """Of the runtime's answers to all of `split`."""
    runtime.load(1)
    right = sum(int((runtime.run(batch.images.numpy()).argmax(1) == batch.labels.numpy()).sum()) for batch in split.batches(100))
    runtime.close()
    return right / len(split)


def kind_of(recipe: str) -> str:
    """Which masks a recipe makes."""
    return next((kind for kind in KINDS if kind in recipe), "weights")


def draw(path: Path, found: dict[str, Any]) -> None:
    """Latency against accuracy; a line a recipe, dashed in int8; the points that none is both faster and more accurate than have a ring."""
    points = found["points"]
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    recipes = list(dict.fromkeys(point["recipe"] for point in points if point["recipe"] != DENSE))
    for recipe in recipes:
        alike = [other for other in recipes if kind_of(other) == kind_of(recipe)]
        marker = MARKERS[alike.index(recipe) % len(MARKERS)]
        for int8 in (False, True):
            mine = [point for point in points if point["recipe"] == recipe and point.get("int8", False) == int8]
            line = sorted((point["milliseconds"], 100 * point["accuracy"]) for point in mine)
            style: dict[str, Any] = {"marker": marker, "markersize": 5, "linewidth": 1, "color": KINDS[kind_of(recipe)]}
            style |= {"linestyle": "--", "markerfacecolor": "white"} if int8 else {}
            if line:
                axes.plot(*zip(*line, strict=True), label=f"{recipe}, int8" if int8 else recipe, **style)
    for point in points:
        if point["recipe"] == DENSE:
            marker = REFERENCES[point["name"]]
            size = 10 if marker in "*P" else 6
            axes.plot(point["milliseconds"], 100 * point["accuracy"], marker, color="#222", markersize=size, label=point["name"])
    front = front_of(points)
    ring: dict[str, Any] = {"fillstyle": "none", "color": "#222", "markersize": 14, "label": "nothing faster is as accurate"}
    axes.plot([p["milliseconds"] for p in front], [100 * p["accuracy"] for p in front], "o", **ring)
    epochs = f"{found['epochs']} epochs" if found["epochs"] else "no fine-tuning"
    axes.set(xlabel="latency, ms (batch 1, one thread)", ylabel="test accuracy, %", title=f"{epochs}; {found['machine']['cpu']}")
    axes.grid(color="#ddd", linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, labelspacing=0.8)
    write_picture(figure, path)


def front_of(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no other is faster than without being less accurate."""

    def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return bool(one["milliseconds"] < other["milliseconds"] and one["accuracy"] >= other["accuracy"])

    return [point for point in points if not any(beats(other, point) for other in points)]


if __name__ == "__main__":
    main()
