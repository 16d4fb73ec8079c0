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

import torch

from fineprune.common.files import read_json, write_json
from fineprune.common.progress import Lines, Silent
from fineprune.compressor.bundle import Bundle
from fineprune.deployment import opened
from fineprune.export.benchmark import BenchmarkConfig
from fineprune.export.machine import machine_facts
from fineprune.models.data import load_data
from fineprune.models.zoo import ModelSpec
from fineprune.models.zoo.registry import parse_args
from fineprune.networks import open_model
from fineprune.pareto.files import Files, latencies
from fineprune.pareto.picture import front_figure
from fineprune.pictures import write_picture
from recipes import DENSE, last

KINDS = {"blocks": "#1f5f8b", "channel": "#7a5ea8", "group": "#3a8f5c", "quad": "#e8a33d", "weights": "#a3123a"}
"""What is masked -> colour; the recipe's name holds it, and without any it is single weights."""
MARKERS = "o^svPXd"
"""One for each recipe of a kind."""


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
    dense = open_model(spec, checkpoint=arguments.checkpoint, data=data, progress=Silent())
    files, points = Files(data=data, int8=True, device="cpu", progress=Lines()), list[tuple[dict[str, Any], Path]]()
    with tempfile.TemporaryDirectory(prefix="fineprune-front-") as folder:

        def place() -> Path:
            made = Path(folder) / str(len(points))
            made.mkdir()
            return made

        where = place()
        trained = [last(run) for run in _runs(arguments) if run["recipe"] == DENSE]
        for row in files.dense(dense, where):
            accuracy = trained[0] if trained and not row["int8"] else row["accuracy"]
            points.append(({**row, "accuracy": accuracy, "recipe": DENSE, "pruned": 0.0}, where / row["file"]))
        for run in _runs(arguments):
            if run["recipe"] == DENSE:
                continue
            name, where = f"{run['recipe']} {run['prune']:.0%}", place()
            bundle = Bundle.load(arguments.runs / "work" / "{recipe}-{prune:g}-{epochs}-{seed}".format(**run))
            facts = {"recipe": run["recipe"], "pruned": 1 - bundle.facts["conv_macs_kept"]}
            for row in files.in_engine(opened(bundle), where, (name, f"{name} int8"), last(run)):
                points.append(({**row, **facts}, where / row["file"]))
        times = latencies(points, data.input_shape, BenchmarkConfig(rounds=arguments.rounds), Lines())
    timed = [{**point, **times[point["name"]]} for point, _ in points if point["name"] in times]
    return {"epochs": arguments.epochs, "seed": arguments.seed, "points": timed, "machine": machine_facts()}


def _runs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Those of the epochs and the seed, by recipe and share."""
    runs = [read_json(path) for path in sorted(arguments.runs.glob("*.json"))]
    chosen = [run for run in runs if run["epochs"] == arguments.epochs and run["seed"] == arguments.seed]
    return [run for run in chosen if not arguments.recipes or run["recipe"] in (DENSE, *arguments.recipes)]


def kind_of(recipe: str) -> str:
    """Which masks a recipe makes."""
    return next((kind for kind in KINDS if kind in recipe), "weights")


def draw(path: Path, found: dict[str, Any]) -> None:
    """Latency against accuracy; a line a recipe, dashed in int8, its colour that of what it masks."""
    recipes = list(dict.fromkeys(point["recipe"] for point in found["points"]))

    def style(recipe: str) -> dict[str, Any]:
        alike = [other for other in recipes if kind_of(other) == kind_of(recipe) and other != DENSE]
        return {"marker": MARKERS[alike.index(recipe) % len(MARKERS)], "color": KINDS[kind_of(recipe)]}

    epochs = f"{found['epochs']} epochs" if found["epochs"] else "no fine-tuning"
    title = f"{epochs}; {found['machine']['cpu']}"
    write_picture(front_figure(found, series=lambda point: str(point["recipe"]), style=style, title=title), path)


if __name__ == "__main__":
    main()
