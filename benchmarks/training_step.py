"""What masks cost while a network is being compressed, on the CPU: a training step under random masks beside the dense step of the same
network, in time and peak memory; and calibration beside plain inference, in samples per second.

    python benchmarks/training_step.py [--quick] [--json FILE] [--threads N] [--network NAME ...]

Every step is forward, backward and SGD with momentum on one fixed batch, activations channels last. The variants of a network take turns,
so that whatever else the machine does meets all of them; each figure is a median over rounds, its ratio that to the dense median. Peak
memory is that of a process of its own: high water of the resident set during two steps, less what was resident before the first.

A calibration pass is timed from its first batch on, without its set-up, which does not grow with the data; passes and plain inference take
turns too, each with the batch size of those tried that suits it best.

Rows "taught" learn from the dense network, too (distillation.py); their ratio is that to the same step without.

Goals: at 72 % of the multiply-adds pruned a step takes at most 1.0 times the dense one (hoped for: 0.6), at 0 % at most 1.3, and at most
1.5 times its memory; learning from the dense network makes a step at most 1.3 times as long; counting block frequencies (Algorithm 8,
stage 1) reaches half of the throughput of plain inference.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.calibrate.collect import CalibrationConfig, Samples, collect
from fineprune.calibrate.convolutions import find_convolutions
from fineprune.calibrate.measures import BlockScores, Frequencies, Measure, WeightSums
from fineprune.common.files import write_json
from fineprune.compressor.layers import MaskedConv2d
from fineprune.compressor.macs import count_macs
from fineprune.export.machine import machine_facts
from fineprune.models.training.distillation import DistillConfig
from fineprune.models.training.teacher import Teacher
from fineprune.models.zoo import ModelSpec, build

INPUT = (3, 32, 32)
NETWORKS = {
    "resnet20-w16": ModelSpec(name="resnet20", args={"width": 16}),
    "resnet20-w32": ModelSpec(name="resnet20", args={"width": 32}),
    "resnet18-cifar": ModelSpec(name="cifar-resnet18", args={}),
}
VARIANTS: dict[str, tuple[float, float, str] | None] = {
    "dense": None,
    "FFP 37 %, FWP kernel 55.6 %": (0.37, 0.556, "kernel"),
    "FFP 37 %, FWP unstructured 55.6 %": (0.37, 0.556, "layer"),
    "FFP 37 %, FWP channel 55.6 %": (0.37, 0.556, "channel"),
    "FFP 72 %": (0.72, 0.0, "kernel"),
    "masks of ones": (0.0, 0.0, "kernel"),
}
"""name -> (pruned blocks, pruned weights, scope of the weight masks)."""
TAUGHT = ", taught"
"""What ends the name of a variant that learns from the dense network."""
BESIDE = {f"{name}{TAUGHT}": name for name in ("dense", "FFP 37 %, FWP kernel 55.6 %")}
"""name -> the variant that it is compared with; the others are compared with the dense one."""
CALIBRATION_BATCHES = (64, 128, 256)
CALIBRATION_GOALS = {"FFP statistics": 0.5}
"""name -> share of the throughput of plain inference."""
GOALS = {"FFP 37 %, FWP kernel 55.6 %": 1.0, "FFP 72 %": 1.0, "masks of ones": 1.3, **dict.fromkeys(BESIDE, 1.3)}


def main() -> None:
    arguments = _parse()
    if arguments.memory_of:
        network, variant = arguments.memory_of
        print(_peak_bytes(network, variant, arguments.batch))
        return
    torch.set_num_threads(arguments.threads)
    rows = [row for name in arguments.network for row in _measure(name, arguments)]
    _print_table(rows)
    calibration = [row for name in arguments.network for row in _measure_calibration(name, arguments)]
    _print_calibration(calibration)
    if arguments.json:
        settings = {"batch": arguments.batch, "rounds": arguments.rounds, "threads": arguments.threads, "quick": arguments.quick}
        facts = {"machine": machine_facts(), "load": os.getloadavg(), "settings": settings, "goals": GOALS, "rows": rows}
        write_json(arguments.json, {**facts, "calibration_goals": CALIBRATION_GOALS, "calibration": calibration})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Take half the batch, few rounds, and the memory of two variants: some two minutes on two cores.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all figures into this JSON file.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="How many threads compute.")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="Measure only these networks.")
    parser.add_argument("--batch", type=int, help="How many images one step takes.")
    parser.add_argument("--rounds", type=int, help="How many rounds to measure.")
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "VARIANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.batch = arguments.batch or (64 if arguments.quick else 128)
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 11)
    return arguments


def masked(spec: ModelSpec, pruned_blocks: float, pruned_weights: float, scope: str) -> nn.Module:
    """The network with random masks on all convolutions: the given share of each channel's blocks and of each layer's weights."""
    model = build(spec, seed=0)
    sizes: dict[str, Tensor] = {}
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: sizes.__setitem__(name, y[0, 0])) for name, module in convolutions.items()
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *INPUT))
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(0)
    for name, conv in convolutions.items():
        kept = torch.rand(conv.in_channels, sizes[name].numel(), generator=generator).argsort(1) >= round(
            pruned_blocks * sizes[name].numel()
        )
        weights = _weight_mask(conv, pruned_weights, scope, generator) if pruned_weights else None
        parent, _, child = name.rpartition(".")
        layer = MaskedConv2d.wrap(conv, ffp_mask=kept.view(-1, *sizes[name].shape), fwp_mask=weights)
        setattr(model.get_submodule(parent), child, layer)
    return model


def _weight_mask(conv: nn.Conv2d, pruned: float, scope: str, generator: torch.Generator) -> Tensor:
    filters, channels, *kernel = conv.weight.shape
    taps = kernel[0] * kernel[1]
    # A slice of one weight cannot lose part of itself, so 1x1 layers lose channels of a filter.
    shape = {"kernel": (filters * channels, taps), "channel": (channels, taps), "layer": (1, filters * channels * taps)}[scope]
    shape = (filters, channels) if taps == 1 else shape
    kept = torch.rand(shape, generator=generator).argsort(1).argsort(1) >= round(pruned * shape[1])
    return kept.view(-1, channels, *kernel).expand(filters, -1, -1, -1).contiguous()


def _variant(network: str, variant: str) -> nn.Module:
    masks = VARIANTS[variant.removesuffix(TAUGHT)]
    model = build(NETWORKS[network], seed=0) if masks is None else masked(NETWORKS[network], *masks)
    return model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _step(model: nn.Module, batch: int, teacher: nn.Module | None = None) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *INPUT, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    settings = (DistillConfig(), torch.device("cpu"), torch.float32, torch.channels_last)
    taught = None if teacher is None else Teacher(teacher, *settings)

    def step() -> None:
        optimizer.zero_grad()
        scores = model(x)
        losses = nn.functional.cross_entropy(scores, labels, reduction="none")
        (losses if taught is None else taught.objective(losses, scores, taught.scores(x))).mean().backward()
        optimizer.step()

    return step


def _measure(network: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    models = {variant: _variant(network, variant) for variant in (*VARIANTS, *BESIDE)}
    teachers = {variant: _variant(network, "dense") for variant in BESIDE}
    steps = {variant: _step(model, arguments.batch, teachers.get(variant)) for variant, model in models.items()}
    first = {variant: _seconds(step) for variant, step in steps.items()}
    times: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(arguments.rounds):
        for variant, step in steps.items():
            times[variant].append(_seconds(step))
    weighed = list(VARIANTS)[:2] if arguments.quick else VARIANTS
    rows: list[dict[str, Any]] = []
    for variant, model in models.items():
        macs, base = count_macs(model.eval(), INPUT), times[BESIDE.get(variant, "dense")]
        rows.append(
            {
                "network": network,
                "variant": variant,
                "macs_kept": macs.conv_macs / macs.conv_macs_dense,
                "seconds": statistics.median(times[variant]),
                "ratio": statistics.median(times[variant]) / statistics.median(base),
                "fastest_ratio": min(times[variant]) / min(base),
                "first_seconds": first[variant],
                "all_seconds": times[variant],
                "peak_bytes": _peak_in_a_process(network, variant, arguments) if variant in weighed else None,
            }
        )
    for row in rows:
        row["memory_ratio"] = row["peak_bytes"] / rows[0]["peak_bytes"] if row["peak_bytes"] else None
    return rows


class _Images:
    """Random images as a source of calibration, which notes when the first batch was asked for."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(count, *INPUT, generator=generator).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (count,), generator=generator)
        self.started = 0.0

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, batch_size: int, *, indices: Tensor | None = None) -> Iterator[Samples]:
        self.started = time.perf_counter()
        places = torch.arange(len(self)) if indices is None else indices
        for some in places.split(batch_size):
            yield Samples(self.images[some[0] : some[-1] + 1], self.labels[some], some)


def _passes(network: str, images: _Images) -> dict[str, Callable[[int], object]]:
    """name -> a pass over all images in batches of the given size."""
    spec = NETWORKS[network]
    dense, pruned = build(spec, seed=0).eval(), masked(spec, 0.37, 0.0, "kernel").eval()
    for model in (dense, pruned):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep = {site.name: site.positions - round(0.37 * site.positions) for site in find_convolutions(dense, INPUT)[0]}

    def infer(batch: int) -> None:
        with torch.inference_mode():
            for some in images.batches(batch):
                dense(some.images)

    def measured(batch: int, model: nn.Module, measure: Measure) -> None:
        collect(model, images, measure, input_shape=INPUT, config=CalibrationConfig(batch_size=batch))

    return {
        "plain inference": infer,
        "FFP statistics": partial(measured, model=dense, measure=Frequencies(norm="l2", keep=keep)),
        "weight sums": partial(measured, model=pruned, measure=WeightSums(taylor=False)),
        "Taylor, blocks": partial(measured, model=dense, measure=BlockScores()),
        "Taylor, weights": partial(measured, model=pruned, measure=WeightSums()),
    }


def _measure_calibration(network: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    images = _Images(64 if arguments.quick else 256)
    batches = [batch for batch in CALIBRATION_BATCHES if batch <= len(images)]
    passes = _passes(network, images)
    times: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in passes for batch in batches}
    for _ in range(1 + min(arguments.rounds, 5)):
        for (name, batch), seconds in times.items():
            passes[name](batch)
            seconds.append(time.perf_counter() - images.started)
    rows: list[dict[str, Any]] = []
    for name in passes:
        # The first round compiles, and fills caches.
        speeds = {batch: len(images) / statistics.median(times[name, batch][1:]) for batch in batches}
        best = max(speeds, key=speeds.__getitem__)
        rows.append({"network": network, "pass": name, "batch": best, "samples_per_second": speeds[best]})
        rows[-1] |= {"ratio": speeds[best] / rows[0]["samples_per_second"], "all_seconds": {str(b): times[name, b] for b in batches}}
    return rows


def _print_calibration(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'network':15} {'pass':34} {'batch':>9} {'samples/s':>9} {'ratio':>6} {'goal':>5}")
    for row in rows:
        goal = CALIBRATION_GOALS.get(row["pass"], "")
        print(f"{row['network']:15} {row['pass']:34} {row['batch']:9} {row['samples_per_second']:9.0f} {row['ratio']:6.2f} {goal:>5}")


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _peak_in_a_process(network: str, variant: str, arguments: argparse.Namespace) -> int | None:
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--batch", str(arguments.batch), "--memory-of", network, variant]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    return int(json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout))


def _peak_bytes(network: str, variant: str, batch: int) -> int:
    """High water of two steps above what is resident once the code has been loaded by steps on a small batch."""
    model = _variant(network, variant)
    _step(model, 24)()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step = _step(model, batch)
    step()
    step()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'network':15} {'masks':34} {'MACs kept':>9} {'ms/step':>8} {'ratio':>6} {'goal':>5} {'peak MB':>8} {'ratio':>6}")
    for row in rows:
        goal, peak = GOALS.get(row["variant"]), row["peak_bytes"]
        memory = f"{peak / 1e6:8.0f} {row['memory_ratio']:6.2f}" if peak else ""
        print(
            f"{row['network']:15} {row['variant']:34} {row['macs_kept']:9.3f} {row['seconds'] * 1e3:8.1f} {row['ratio']:6.2f} "
            f"{goal or '':>5} {memory}"
        )


if __name__ == "__main__":
    main()
