"""SGD, SSGD, ASGD, DC-ASGD and LC-ASGD under simulated delays: the source's table, its ablations, and a learning rate chosen for each.

    python benchmarks/lc_asgd.py [--quick] [--json FILE] [--runs FOLDER] [--plots FOLDER] [--table]

Every run leaves a file in the runs folder and is not done again, so the benchmark can be stopped and goes on; --table makes the table (and
the JSON file and plots) of the runs that are there. ResNet-8 of 8-16-32 planes on 10,000 images of Fashion-MNIST at 14x14 pixels, batch
32, five epochs (1,565 gradients), no momentum, the rate divided by ten after epochs 3 and 4; computation log-normal (sigma 0.2) with mean
1, weights and gradients take 0.1 each way. The rate of each algorithm and number of workers is chosen on the validation images of seed 0
out of one grid; test images decide nothing. All runs of one seed share initial weights and the order of images.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fineprune.common.files import read_json, write_json
from fineprune.export.machine import machine_facts, package_versions
from fineprune.models.data import ImageData, Split, load_data
from fineprune.models.training import TrainConfig
from fineprune.models.training.distributed.config import POLICIES, AsyncConfig
from fineprune.models.training.distributed.simulated import Simulated
from fineprune.models.training.results import EpochRecord
from fineprune.models.training.trainer import opened
from fineprune.models.zoo import build

RATES = (0.2, 0.4, 0.8)
COMMON_RATE = 0.2
"""Of the rows in which all algorithms have the same rate, as in the source."""
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ssgd", "", {}),
    ("asgd", "", {}),
    ("dc-asgd", "", {}),
    ("dc-asgd", "adaptive", {"adaptive": True}),
    ("lc-asgd", "", {}),
    ("lc-asgd", "normalised", {"mode": "normalised"}),
)
"""algorithm, label, settings of the rows that every number of workers has."""
DAMPED: tuple[str, str, dict[str, Any]] = ("lc-asgd", "damped", {"mode": "damped", "lam": 1.0})
ABLATIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("dc-asgd", "strong", {"lam": 1.0}),
    ("lc-asgd", "chain", {"mode": "chain"}),
    DAMPED,
    *(("lc-asgd", f"lam{strength:g}", {"lam": strength}) for strength in (0.02, 0.05, 0.2, 0.5)),
)
"""Those that only ABLATED_WORKERS have; all choose their own rate."""
ABLATED_WORKERS = 8
_RATES = (0.0125, 12.8)
"""The grid grows no further than this."""
OTHER_CONDITIONS: dict[str, dict[str, Any]] = {
    "stragglers": {"time": {"distribution": "stragglers"}},
    "heterogeneous": {"time": {"distribution": "heterogeneous"}},
    "iid shards": {"shards": "iid"},
    "dirichlet shards": {"shards": "dirichlet", "alpha": 0.3},
}
"""Of ABLATED_WORKERS workers."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the benchmark is."""

    images: int = 10_000
    validation: int = 4_000
    test: int = 10_000
    batch: int = 32
    epochs: int = 5
    workers: tuple[int, ...] = (4, 8, 16)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    fewer: int = 3
    """How many of the seeds the ablations and other conditions have."""
    around: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Rates under other conditions, in units of the one chosen without them."""
    rates: tuple[float, ...] = RATES


QUICK = Sizes(images=1_280, validation=500, test=1_000, epochs=3, workers=(4, 8), seeds=(0, 1), fewer=1, rates=(0.2, 0.4), around=(1.0,))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training; `settings` are fields of AsyncConfig besides algorithm and workers."""

    algorithm: str
    workers: int
    lr: float
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    trace: bool = False

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.algorithm}{self.label and '-' + self.label.replace(' ', '-')}_m{self.workers}_lr{self.lr:.4g}_s{self.seed}"


@dataclass
class Bench:
    """The runs folder and what its runs are made of."""

    folder: Path
    sizes: Sizes
    only_table: bool
    _data: ImageData | None = None

    def result(self, run: Run) -> dict[str, Any] | None:
        """From its file, or by training; None where there is no file and only the table is wanted."""
        path = self.folder / f"{run.name}.json"
        if path.exists():
            return read_json(path)
        if self.only_table:
            return None
        result = self._train(run)
        write_json(path, result)
        last = result["validation_accuracy"][-1]
        print(f"{run.name}: validation {last:.4f}, test error {result['test_error']['async']:.4f}, {result['seconds']:.0f} s", flush=True)
        return result

    def results(self, run: Run, seeds: int | None = None) -> list[dict[str, Any]]:
        """Of all seeds, or the first so many."""
        runs = (replace(run, seed=seed, trace=run.trace and seed == 0) for seed in self.sizes.seeds[:seeds])
        found = (self.result(run) for run in runs)
        return [result for result in found if result is not None]

    @property
    def data(self) -> ImageData:
        """The same images for every run."""
        if self._data is None:
            whole = load_data("fashion-mnist", image_size=14, validation=0.1, seed=0)
            sizes = {"train": self.sizes.images, "validation": self.sizes.validation, "test": self.sizes.test}
            self._data = replace(whole, **{name: _part(whole, getattr(whole, name), count) for name, count in sizes.items()})
        return self._data

    def _train(self, run: Run) -> dict[str, Any]:
        epochs = self.sizes.epochs
        config = TrainConfig(
            epochs=epochs,
            batch_size=self.sizes.batch,
            lr=run.lr,
            momentum=0.0,
            schedule="multistep",
            milestones=tuple(sorted({max(1, epochs - 2), max(1, epochs - 1)})),
            augment=False,
            channels_last=False,
            seed=run.seed,
        )
        settings = AsyncConfig(algorithm=run.algorithm, workers=run.workers, **{"predictor": "compiled", **run.settings})  # type: ignore[arg-type]
        model = build("resnet8", seed=run.seed, width=8, in_channels=1, num_classes=10)
        tests: dict[str, float] = {}
        arrivals: list[Any] = []

        def measure(engine: Simulated, record: EpochRecord) -> None:
            if record.epoch == epochs:
                test = self.data.test
                tests.update({policy: 1 - engine.evaluate(test, "test", epochs - 1, policy).accuracy for policy in POLICIES})
                arrivals.extend(engine.server.telemetry.trace or [])

        started, processor = time.monotonic(), time.process_time()
        facts = {"algorithm": run.algorithm, "workers": run.workers, "lr": run.lr, "seed": run.seed, "label": run.label, **run.settings}
        try:
            with opened(model, self.data, replace(config, asynchronous=settings), device="cpu") as opened_run:
                engine = opened_run.engine
                if not isinstance(engine, Simulated):
                    raise TypeError("the settings ask for the simulated engine")
                engine.server.telemetry.trace = [] if run.trace else None
                result = opened_run.finish(partial(measure, engine))
        except RuntimeError as error:
            if "not finite" not in str(error):
                raise
            worst = dict.fromkeys(POLICIES, 0.9)
            return {**facts, "diverged": str(error), "validation_accuracy": [0.1], "test_error": worst, "seconds": 0.0}
        return {
            **facts,
            "validation_accuracy": [record.validation_accuracy for record in result.history],
            "train_loss": [record.train_loss for record in result.history],
            "test_error": tests,
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - processor,
            **result.to_json()["asynchronous"],
            "arrivals": [list(arrival) for arrival in arrivals],
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Take fewer images, epochs, seeds and rates: under five minutes.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all figures into this JSON file.")
    parser.add_argument("--runs", type=Path, default=Path("runs/lc_asgd"), metavar="FOLDER", help="Keep the finished runs in this folder.")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="Draw the figures into this folder.")
    parser.add_argument("--table", action="store_true", help="Train nothing, and make the table of the runs that are there.")
    arguments = parser.parse_args()
    folder = arguments.runs / ("quick" if arguments.quick else "full")
    bench = Bench(folder, QUICK if arguments.quick else Sizes(), arguments.table)
    torch.set_num_threads(1)
    report = {"machine": machine_facts(), "packages": package_versions(), **collect(bench)}
    print_report(report)
    if arguments.json:
        write_json(arguments.json, report)
    if arguments.plots:
        from lc_asgd_plots import draw

        draw(folder, report, arguments.plots)


def collect(bench: Bench) -> dict[str, Any]:
    """Every row. What matters most comes first, so that the runs of a benchmark that was stopped say as much as they can."""
    chosen: dict[tuple[str, str, int], float] = {}
    rows = [row(bench, "chosen rate", _tuned(bench, chosen, "sgd", 1))]
    for workers in sorted(bench.sizes.workers, key=lambda m: m != ABLATED_WORKERS):
        tuned = [_tuned(bench, chosen, algorithm, workers, label, settings) for algorithm, label, settings in VARIANTS]
        rows += [row(bench, "chosen rate", run) for run in tuned]
        if workers == ABLATED_WORKERS:
            rows += ablations(bench, chosen)
    for algorithm, label, workers in list(chosen):
        if not label:
            run = Run(algorithm=algorithm, workers=workers, lr=COMMON_RATE, seed=0, trace=_traced(algorithm, workers))
            rows.append(row(bench, "equal rate", run, 1))
    for group, settings in OTHER_CONDITIONS.items():
        rows += condition(bench, chosen, group, settings)
    return {
        "rates": {f"{algorithm} {label} m{m}".replace("  ", " "): rate for (algorithm, label, m), rate in chosen.items()},
        "rows": (found := [r for r in rows if r is not None]),
        "differences": differences(found),
    }


def ablations(bench: Bench, chosen: dict[tuple[str, str, int], float]) -> list[dict[str, Any] | None]:
    """What each part is worth. Variants that change the mean step choose their own rate."""
    m, fewer = ABLATED_WORKERS, bench.sizes.fewer
    rate = chosen["lc-asgd", "", m]
    base = bench.result(Run(algorithm="lc-asgd", workers=m, lr=rate, seed=0))
    rows = []
    if base is not None:
        fair = rate * (1 + AsyncConfig(workers=m).strength * base["mean_forecast_steps"])
        rows.append(row(bench, "ablation", Run(algorithm="asgd", workers=m, lr=float(f"{fair:.3g}"), seed=0, label="fair")))
    rows.append(row(bench, "ablation", Run(algorithm="lc-asgd", workers=m, lr=rate, seed=0, settings={"predictor": "last"}, label="off")))
    literal = Run(algorithm="lc-asgd", workers=m, lr=chosen["asgd", "", m], seed=0, settings={"mode": "literal"}, label="literal")
    rows.append(row(bench, "ablation", literal, fewer))
    for algorithm, label, settings in ABLATIONS:
        rows.append(row(bench, "ablation", _tuned(bench, chosen, algorithm, m, label, settings), fewer))
    return rows


def condition(bench: Bench, chosen: dict[tuple[str, str, int], float], group: str, settings: dict[str, Any]) -> list[dict[str, Any] | None]:
    """The rows of one of OTHER_CONDITIONS."""
    rows = []
    for algorithm, label, own in (*VARIANTS, DAMPED):
        middle = chosen[algorithm, label, ABLATED_WORKERS]
        rates, name = [factor * middle for factor in bench.sizes.around], " ".join(filter(None, (label, group)))
        rate = choose_rate(bench, algorithm, ABLATED_WORKERS, {**own, **settings}, name, rates)
        run = Run(algorithm=algorithm, workers=ABLATED_WORKERS, lr=rate, seed=0, settings={**own, **settings}, label=name)
        rows.append(row(bench, group, run, bench.sizes.fewer))
    return rows


def _tuned(
    bench: Bench,
    chosen: dict[tuple[str, str, int], float],
    algorithm: str,
    workers: int,
    label: str = "",
    settings: dict[str, Any] | None = None,
) -> Run:
    """The run of seed 0 at the rate that it validates best at, which is noted in `chosen`."""
    rate = chosen[algorithm, label, workers] = choose_rate(bench, algorithm, workers, settings, label)
    trace = _traced(algorithm, workers) and not label
    return Run(algorithm=algorithm, workers=workers, lr=rate, seed=0, settings=settings or {}, label=label, trace=trace)


def choose_rate(
    bench: Bench,
    algorithm: str,
    workers: int,
    settings: dict[str, Any] | None = None,
    label: str = "",
    rates: Sequence[float] | None = None,
) -> float:
    """The rate with the best validation accuracy after the last epoch of seed 0, out of `rates`.

    Where none are given: out of a grid that grows while an end of it is the best.
    """
    scores: dict[float, float | None] = {}
    waiting = list(rates or bench.sizes.rates)
    while waiting:
        lr = waiting.pop(0)
        traced = _traced(algorithm, workers) and not label
        run = Run(algorithm=algorithm, workers=workers, lr=lr, seed=0, settings=settings or {}, label=label, trace=traced)
        result = bench.result(run)
        scores[lr] = None if result is None else result["validation_accuracy"][-1]
        if not waiting and rates is None and (best := _best(scores)) is not None:
            ends = {max(scores): 2 * best, min(scores): best / 2}
            waiting = [lr for lr in [ends.get(best)] if lr is not None and lr not in scores and _RATES[0] <= lr <= _RATES[1]]
    return _best(scores) or COMMON_RATE


def _best(scores: dict[float, float | None]) -> float | None:
    known = {lr: score for lr, score in scores.items() if score is not None}
    return max(known, key=lambda lr: known[lr]) if known else None


def row(bench: Bench, group: str, run: Run, seeds: int | None = None) -> dict[str, Any] | None:
    """Mean and deviation over all seeds, or the first so many; None where no run is there."""
    results = bench.results(run, seeds)
    if not results:
        return None
    errors = {policy: [100 * result["test_error"][policy] for result in results] for policy in POLICIES}
    keys = ("mean_staleness", "mean_forecast_steps", "mean_forecast_ratio")
    return {
        "group": group,
        "algorithm": " ".join([run.algorithm, *run.label.removesuffix(group).split()]),
        "workers": run.workers,
        "lr": run.lr,
        "seeds": len(results),
        "test_error": {policy: [statistics.mean(values), _deviation(values)] for policy, values in errors.items()},
        "errors_by_seed": [[result["seed"], error] for result, error in zip(results, errors["async"], strict=True)],
        "policy_gain": [a - b for a, b in zip(errors["last-worker"], errors["async"], strict=True)],
        "virtual_seconds": statistics.mean(result.get("virtual_seconds", [0.0])[-1] for result in results),
        "diverged": sum("diverged" in result for result in results),
        **{key: statistics.mean(result.get(key, 0.0) for result in results) for key in keys},
        "errors": results[0].get("mean_absolute_errors", {}),
        "server_ms": results[0].get("server_ms_per_call", {}),
        "seconds": statistics.mean(result["seconds"] for result in results),
        "names": [replace(run, seed=result["seed"]).name for result in results],
    }


def differences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Error of LC-ASGD minus that of each other algorithm under the same conditions: mean and standard error over the seeds of both."""
    result = []
    for ours in rows:
        if ours["algorithm"] != "lc-asgd" or ours["group"] == "equal rate":
            continue
        for other in rows:
            if other is ours or (other["group"], other["workers"]) != (ours["group"], ours["workers"]):
                continue
            theirs = dict(other["errors_by_seed"])
            gaps = [error - theirs[seed] for seed, error in ours["errors_by_seed"] if seed in theirs]
            if not gaps:
                continue
            error = _deviation(gaps) / len(gaps) ** 0.5
            facts = {key: ours[key] for key in ("group", "workers")}
            result.append({**facts, "other": other["algorithm"], "seeds": len(gaps), "mean": statistics.mean(gaps), "error": error})
    return result


def print_report(report: dict[str, Any]) -> None:
    """The table on standard output; errors in percent, mean and standard deviation over seeds."""
    print(f"{'group':16} {'algorithm':26} {'M':>3} {'lr':>6} {'seeds':>5}  {'Async-BN':>12} {'last-worker':>12} {'last-batch':>12} "
          f"{'stale':>6} {'virtual s':>9}")  # fmt: skip
    for entry in report["rows"]:
        cells = "".join(f" {mean:6.2f} ±{deviation:4.2f}" for mean, deviation in (entry["test_error"][policy] for policy in POLICIES))
        print(
            f"{entry['group']:16} {entry['algorithm']:26} {entry['workers']:3} {entry['lr']:6.3g} {entry['seeds']:5}  {cells} "
            f"{entry['mean_staleness']:6.2f} {entry['virtual_seconds']:9.0f}"
        )
    print("\nLC-ASGD's error (Async-BN) minus that of, by seed, mean ± standard error")
    for entry in report["differences"]:
        place = f"{entry['group']:16} {entry['other']:26} {entry['workers']:3} {entry['seeds']:13}"
        print(f"{place}  {entry['mean']:+6.2f} ±{entry['error']:4.2f}")


def _part(data: ImageData, split: Split, count: int) -> Split:
    """`count` samples of a split, the same ones always."""
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return split.subset(chosen)


def _traced(algorithm: str, workers: int) -> bool:
    return algorithm == "lc-asgd" and workers == ABLATED_WORKERS


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
