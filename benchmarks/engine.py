"""The engine beside dense runtimes, layer by layer and network by network, on the CPU.

    python benchmarks/engine.py [--quick] [--int8] [--json FILE] [--plot FILE] [--docs FILE] [--networks NAME ...] [--threads N ...]

For each network (engine_networks.py: exact masks from calibration) it measures
    layers     every convolution in the engine beside the dense one in ONNX Runtime, one thread: the fraction of the ideal speed-up
    networks   latency at batch 1 in dense ONNX Runtime, the dense peers that are installed (pip install 'fineprune[bench]'), ONNX Runtime
               in int8, the engine on the dense file and on each kind of masks, and the exported files on stock ONNX Runtime
With --int8 it measures, instead, float32 and int8 with nothing and with 72 % of the quads dropped (engine_int8.py).
All runtimes take turns; figures are medians over rounds and speed-ups are paired within a round. Results are written after each network,
and those of networks measured before stay in the file: one can run them one at a time.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from engine_int8 import judge_int8, measure_int8
from engine_networks import KINDS, NETWORKS, default_data, prepare
from engine_report import GOALS, GROUPS, figure, judge, markdown, replace_section

from fineprune.common.errors import FinepruneError
from fineprune.common.files import read_json, write_json
from fineprune.export.benchmark import BenchmarkConfig, benchmark
from fineprune.export.machine import machine_facts
from fineprune.export.peers import PEERS, usable_peers
from fineprune.export.runtimes import OnnxRuntime, Runtime
from fineprune.pictures import write_picture

QUICK = ("resnet20-w16", "resnet20-w32")
FEW_KINDS = ("channel", "weights", "thesis-channel", "thesis-group", "thesis-kernel")
ROUNDS, FEW_ROUNDS = 15, 7
LARGE_SIZE = 224
LARGE_FILE, FEW_RUNTIMES = 100 << 20, 4
"""Bytes of a network of which so many runtimes, and dense ONNX Runtime, are in memory at once, at most."""


def main() -> None:
    arguments = _parse()
    results = _earlier(arguments.json)
    kind = "int8" if arguments.int8 else "networks"
    for name in arguments.networks:
        with tempfile.TemporaryDirectory(prefix="fineprune-benchmark-") as folder:
            kept = arguments.work / name if arguments.work else Path(folder)
            place = results.setdefault(kind, {})
            place[name] = measure_int8(name, kept, _config(name, arguments)) if arguments.int8 else _measure(name, kept, arguments)
        results.update(machine=machine_facts(), command=shlex.join(["python", "benchmarks/engine.py", *sys.argv[1:]]), goals=GOALS)
        results["verdicts"] = [*judge(results), *judge_int8(results.get("int8", {}))]
        if arguments.json:
            write_json(arguments.json, results)
        _say(markdown({**results, "networks": {}, "int8": {}, kind: {name: place[name]}}))
    _say("\n".join(results["verdicts"]))
    if arguments.plot:
        write_picture(figure(results[kind]), arguments.plot, dpi=150)
    if arguments.docs:
        replace_section(arguments.docs, markdown(results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Take two small networks, fewer kinds of masks, images and rounds: under five minutes on two cores.",
    )
    parser.add_argument(
        "--int8", action="store_true", help="Measure float32 and int8 with random masks of quads, instead of the kinds of masks."
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="Keep every figure in this JSON file; networks that it has already stay in it."
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Draw a bar chart into this file (.png or .svg).")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="Write the tables between the markers of this Markdown file.")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, metavar="NAME", help=f"Measure only these networks, of {', '.join(NETWORKS)}."
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        metavar="KIND",
        help=f"Measure only these kinds of masks, of {', '.join(KINDS)} (with --quick and for large networks: {', '.join(FEW_KINDS)}).",
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="Measure on each of these numbers of threads.")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="Measure with each of these numbers of images in a call.")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=[peer.name for peer in PEERS],
        help="Measure only these other runtimes (default: all that are installed).",
    )
    parser.add_argument("--no-layers", action="store_true", help="Measure whole networks only, and no single layers.")
    parser.add_argument(
        "--rounds", type=int, help=f"How many rounds to measure (default: {ROUNDS}; {FEW_ROUNDS} with --quick and for large networks)."
    )
    parser.add_argument("--samples", type=int, help="Calibrate on at most so many images.")
    parser.add_argument("--data", default=default_data(), help="The images, as `fineprune --data` takes them.")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="Keep the exported files in this folder.")
    arguments = parser.parse_args()
    arguments.networks = arguments.networks or (QUICK if arguments.quick else list(NETWORKS))
    arguments.samples = arguments.samples or (64 if arguments.quick else None)
    return arguments


def _earlier(path: Path | None) -> dict[str, Any]:
    return read_json(path) if path and path.is_file() else {"networks": {}}


def _few(name: str, arguments: argparse.Namespace) -> bool:
    return bool(arguments.quick or NETWORKS[name].size >= LARGE_SIZE)


def _config(name: str, arguments: argparse.Namespace) -> BenchmarkConfig:
    return BenchmarkConfig(
        batch_sizes=tuple(arguments.batch),
        threads=tuple(arguments.threads),
        rounds=arguments.rounds or (FEW_ROUNDS if _few(name, arguments) else ROUNDS),
        turn_s=0.02 if arguments.quick else 0.05,
        warmup_s=0.1,
    )


def _measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    kinds, config = arguments.kinds or (FEW_KINDS if _few(name, arguments) else KINDS), _config(name, arguments)
    facts = prepare(name, folder, data=arguments.data, kinds=kinds, samples=arguments.samples, say=_say)
    samples: np.ndarray = facts.pop("samples")
    files = {kind: Path(file["path"]) for kind, file in facts["files"].items()}
    for file in facts["files"].values():
        del file["path"]
    result: dict[str, Any] = {**facts, "quick": arguments.quick, "latency": [], "layers": {}}
    runtimes, skipped = _runtimes(files, samples, arguments.peers)
    result["skipped"] = skipped
    for line in skipped:
        _say(line)
    _say(f"{name}: {len(runtimes)} runtimes")
    together = FEW_RUNTIMES if files["dense"].stat().st_size > LARGE_FILE else len(runtimes)
    for first in range(1, len(runtimes), together):
        rows = benchmark([runtimes[0], *runtimes[first : first + together]], tuple(facts["input_shape"]), config).to_json()["rows"]
        result["latency"] += [row for row in rows if first == 1 or row["runtime"] != runtimes[0].name]
    if not arguments.no_layers:
        result["layers"] = _layers(name, files, samples[:1], config.rounds)
    return result


def _layers(name: str, files: dict[str, Path], x: np.ndarray, rounds: int) -> dict[str, Any]:
    from fineprune.export.layer_times import layer_times_of, summary

    found: dict[str, Any] = {}
    for kinds in (("dense",), *GROUPS.values()):
        chosen = {kind: files[kind] for kind in kinds if kind in files}
        _say(f"{name}: layers of {', '.join(chosen)}")
        times = layer_times_of(files["dense"], chosen, x, rounds=rounds) if chosen else {}
        found |= {kind: {"summary": summary(rows), "rows": [row.to_json() for row in rows]} for kind, rows in times.items()}
    return found


def _runtimes(files: dict[str, Path], samples: np.ndarray, peers: list[str] | None) -> tuple[list[Runtime], list[str]]:
    """Everything that runs the network, dense ONNX Runtime (the baseline) first, and a line for each peer that is left out."""
    from fineprune.export.engine.run.runtime import EngineRuntime

    others, skipped = usable_peers(files["dense"], samples, peers)
    runtimes: list[Runtime] = [OnnxRuntime("onnxruntime dense", files["dense"]), *others]
    runtimes += [EngineRuntime(f"fineprune {kind}", path) for kind, path in files.items()]
    runtimes += [OnnxRuntime(f"onnxruntime {kind}", path) for kind, path in files.items() if kind != "dense"]
    return runtimes, skipped


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except FinepruneError as error:
        sys.exit(f"benchmarks/engine.py: {error}")
