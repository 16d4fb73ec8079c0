"""`fineprune bench`."""

from pathlib import Path
from typing import Any

import click

from .options import bundle_argument, check_named, data_options, input_option, json_option, model_options, open_network, open_optional_data


@click.command(short_help="Measure latency, dense and compressed.")
@bundle_argument
@model_options
@data_options
@input_option
@click.option("--onnx", type=click.Path(path_type=Path), help="Measure this exported file instead of a fresh export.")
@click.option("--batch", "batch_sizes", type=int, multiple=True, default=(1,), show_default=True, help="Batch size (repeatable).")
@click.option("--threads", type=int, multiple=True, default=(1,), show_default=True, help="Threads (repeatable).")
@click.option("--rounds", type=int, default=15, show_default=True, help="Interleaved rounds.")
@json_option
def bench(as_json: bool, onnx: Path | None, batch_sizes: tuple[int, ...], threads: tuple[int, ...], rounds: int, **options: Any) -> None:
    """Latency of BUNDLE (or --model): dense in ONNX Runtime and torch, and compressed, side by side."""
    from ..common.progress import Bars
    from ..deployment import bench as measure
    from ..export.benchmark import BenchmarkConfig
    from .render import print_bench, print_json

    config = BenchmarkConfig(batch_sizes=batch_sizes, threads=threads, rounds=rounds)
    check_named(options)
    network = open_network(options, open_optional_data(options))
    report = measure(network, config, onnx=onnx, progress=Bars()).to_json()
    if as_json:
        print_json(report)
    else:
        print_bench(report)
