"""`fineprune bench`."""

from pathlib import Path
from typing import Any

import click

from .options import bundle_argument, check_named, data_options, input_option, json_option, model_options, open_network_and_data
from .sections import Command


@click.command(cls=Command, short_help="Measure the latency, dense and compressed.")
@bundle_argument
@model_options
@data_options
@input_option
@click.option(
    "--onnx",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Measure this exported file, of float32 or of int8, instead of exporting the network anew (repeatable).",
)
@click.option("--int8/--no-int8", default=True, show_default=True, help="Measure the network in eight-bit integers, too.")
@click.option(
    "--batch", "batch_sizes", type=int, multiple=True, default=(1,), show_default=True, help="How many images one call takes (repeatable)."
)
@click.option("--threads", type=int, multiple=True, default=(1,), show_default=True, help="On how many threads to measure (repeatable).")
@click.option("--rounds", type=int, default=15, show_default=True, help="How many rounds to measure; in each, all runtimes take turns.")
@click.option(
    "--peers",
    default="all",
    show_default=True,
    metavar="NAMES",
    help="Which other dense runtimes to measure: all, none, or some of openvino,MNN,ncnn,int8,openvino-int8.",
)
@click.option("--layers", is_flag=True, help="Measure every convolution, too: in the engine, and dense in ONNX Runtime.")
@click.option("--machine", is_flag=True, help="Print what operations cost on this machine, by which kernels are chosen, and nothing else.")
@click.option("--redo", is_flag=True, help="With --machine: measure these costs anew.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the latencies as a bar chart in this file (.png or .svg).")
@json_option
def bench(
    as_json: bool,
    onnx: tuple[Path, ...],
    int8: bool,
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    rounds: int,
    peers: str,
    layers: bool,
    machine: bool,
    redo: bool,
    plot: Path | None,
    **options: Any,
) -> None:
    """Measure the latency of BUNDLE (or --model): dense in several runtimes, compressed in the engine and ONNX Runtime; float32 and int8.

    BUNDLE is a folder that `fineprune compress` wrote.
    """
    from fineprune.common.progress import Bars
    from fineprune.export.benchmark import BenchmarkConfig

    from ..latency import bench as measure
    from ..latency import bench_layers, layer_rows, peers_of
    from ..latency_figure import latency_figure
    from ..pictures import check_picture, write_picture
    from .render import print_bench, print_json, print_layers

    if machine or redo:
        _bench_machine(redo, as_json)
        return
    if plot is not None:
        check_picture(plot)
    named = peers_of(peers)
    config = BenchmarkConfig(batch_sizes=batch_sizes, threads=threads, rounds=rounds)
    check_named(options)
    network, _ = open_network_and_data(options)
    report = measure(network, config, onnx=onnx, int8=int8, peers=named, progress=Bars()).to_json()
    if layers:
        times = bench_layers(network, onnx=onnx, int8=int8, rounds=rounds, progress=Bars())
        report |= layer_rows(times)
    if plot is not None:
        write_picture(latency_figure(report), plot, dpi=150)
    if as_json:
        print_json(report)
        return
    print_bench(report)
    if layers:
        for name, rows in times.items():
            print_layers([row.to_json() for row in rows], name)


def _bench_machine(redo: bool, as_json: bool) -> None:
    """What `--machine` asks for."""
    from fineprune.export.engine.run.machine import listed
    from fineprune.export.machine import machine_facts

    from .render import print_costs, print_json

    report = {"machine": machine_facts(), **listed(redo)}
    if as_json:
        print_json(report)
    else:
        print_costs(report)
