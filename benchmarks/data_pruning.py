"""What leaving samples out of epochs saves, and what it costs: every policy beside the regular run and one of equal time.

    python benchmarks/data_pruning.py [--quick] [--json FILE] [--data SPEC] [--networks NAME[:KEY=VALUE,...] ...] [--bundle FOLDER]
                                      [--epochs N] [--samples N] [--noise R] [--training JSON] [--seeds N ...] [--rows NAME ...]
                                      [--runs FOLDER] [--collect]

Each run ends in a file of its own in the folder of runs and resumes where it was interrupted; the table is made of those files, also
of those that are there so far (--collect trains nothing). Several processes may share the folder.

Time is the processor time of training and validation (wall time stands beside it: machines are shared); saved time and accuracy
differences are paired by seed. "in run" is the saving that a run measures by itself, against its own full epochs: the figure to compare
with the predicted one ("off" is the largest distance of any run), and the one that goals are judged by. With --device cuda the processor
only launches kernels: compare visits there.

Fine-pruning leaves out the samples with the most high losses, as the source does; rows NAME-easiest leave out those with the fewest,
NAME-random as many at random in the same epochs. Rows NAME+auto-lr have the automatic learning rate in place of the milestones.

The window of fine-pruning, 60 of the source's 160 epochs, and its start shrink with --epochs. Two baselines take N % of the time and prune
nothing: `stop-N` is the regular run stopped after N % of its epochs, `equal-N` has its whole schedule, milestones too, squeezed into them.
A policy is worth something where it beats the better one of those that visit at least as many samples. A stopped row that is asked for
with its whole one comes out of that one's first epochs, which are the same, bit for bit.

--noise R gives a share R of the training labels another class, and the table says how many of them each view of the losses finds
(label_noise.py). --bundle FOLDER fine-tunes the masked network of a bundle. Settings that are chosen by these tables are to be chosen by
the validation accuracy of seeds that no table has.

Goal: at least 24.46 % of the time saved and at most 0.4 points of accuracy lost; hoped for: 40 % and 0.1 points.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from data_pruning_rows import QUICK_ROWS, ROWS, config_of, stops_of
from data_pruning_table import GOALS, SOURCE, print_table, table
from label_noise import found, with_wrong_labels
from shared_folder import add_options, claimed
from torch import Tensor, nn

from fineprune.common.errors import UsageError
from fineprune.common.files import read_json, write_json
from fineprune.common.progress import Bars
from fineprune.export.machine import machine_facts
from fineprune.models.data import ImageData, load_data
from fineprune.models.state_dict import as_state_of
from fineprune.models.training import EpochRecord, TrainConfig, evaluate, train
from fineprune.models.training.device import resolve_device
from fineprune.models.training.sampling.time_model import saving_of_run
from fineprune.models.training.state import STATE_FILE
from fineprune.models.zoo import ModelSpec, build
from fineprune.models.zoo.registry import parse_args
from fineprune.networks import completed, load_arguments, open_bundle


def main() -> None:
    arguments = _parse()
    if not arguments.collect:
        torch.set_num_threads(arguments.threads)
        data = smaller(_data(arguments), arguments.samples)
        for split in (data.train, data.test):
            next(iter(split.batches(1)))  # files are decoded now, and in no run's time
        for network, seed, row in _jobs(arguments):
            _run(network, row, seed, data, arguments)
    runs = [read_json(path) for path in sorted(arguments.runs.glob("*.json"))]
    settings = _settings(arguments)
    runs = [run for run in runs if run["settings"] == settings and run["row"] in arguments.rows and run.get("changes") == ROWS[run["row"]]]
    runs = [run for run in runs if run["seed"] in arguments.seeds]  # others may have been for choices
    tables = {network: table([run for run in runs if run["network"] == network]) for network in arguments.networks}
    for network, rows in tables.items():
        print_table(network, rows, arguments)
    if arguments.json:
        facts = {"machine": machine_facts(), "load": os.getloadavg(), "settings": settings, "goals": GOALS, "source": SOURCE}
        write_json(arguments.json, {**facts, "tables": tables, "runs": runs})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Take 2,000 images, 12 epochs and one seed: under five minutes on two cores.")
    parser.add_argument("--data", default="fashion-mnist", metavar="SPEC", help="The data set, as `fineprune --data` takes it.")
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["lenet", "resnet18-3stage:width=8"],
        metavar="NAME",
        help="Train these networks; arguments follow a colon.",
    )
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="Start from the masked network of this bundle.")
    parser.add_argument("--epochs", type=int, help="How many epochs a run has.")
    parser.add_argument("--samples", type=int, help="How many training images to take; validation shrinks alike, and all test images stay.")
    parser.add_argument("--noise", type=float, default=0.0, metavar="R", help="What share of the training labels to make wrong.")
    parser.add_argument("--seeds", nargs="+", type=int, help="Repeat every row with each of these seeds.")
    rows, quick_rows = ", ".join(ROWS), ", ".join(QUICK_ROWS)
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, metavar="NAME", help=f"Make only these rows of {rows} (with --quick: {quick_rows})."
    )
    parser.add_argument("--batch-size", type=int, help="How many images one step takes.")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="Train here: cpu, cuda, cuda:N or mps.")
    add_options(parser, "data-pruning")
    arguments = parser.parse_args()
    if not 0 <= arguments.noise < 1:
        parser.error(f"--noise is in [0,1), got {arguments.noise}")
    if not arguments.collect:  # runs of another machine can be looked at
        try:
            resolve_device(arguments.device)
        except UsageError as error:
            parser.error(f"--device: {error}")
    quick = arguments.quick
    arguments.epochs = arguments.epochs or (12 if quick else 20)
    arguments.samples = arguments.samples or (2000 if quick else None)
    arguments.rows = arguments.rows or list(QUICK_ROWS if quick else ROWS)
    arguments.seeds = arguments.seeds or ([0] if quick else [0, 1, 2])
    arguments.batch_size = arguments.batch_size or (64 if quick else 128)
    return arguments


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What runs must have in common to stand in one table."""
    always = {name: getattr(arguments, name) for name in ("data", "epochs", "samples", "batch_size", "threads")}
    bundle = None if arguments.bundle is None else str(arguments.bundle)
    device = None if arguments.device == "cpu" else arguments.device
    own = {"noise": arguments.noise, "training": arguments.training, "bundle": bundle, "device": device}
    return {**always, **{name: value for name, value in own.items() if value}}


def _jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """Seeds outermost, each beginning with another row: what else the machine does must not always meet the same one.

    Stopped rows come last: most are made by then.
    """
    whole = [row for row in arguments.rows if "stopped" not in ROWS[row]]
    for seed in arguments.seeds:
        turn = 3 * seed % max(len(whole), 1)
        rows = [*whole[turn:], *whole[:turn], *(row for row in arguments.rows if row not in whole)]
        for network in arguments.networks:
            yield from ((network, seed, row) for row in rows)


def _data(arguments: argparse.Namespace) -> ImageData:
    """The data, split and normalised as they were for the network of the bundle, where there is one."""
    facts = {} if arguments.bundle is None else load_arguments(open_bundle(arguments.bundle).data or {})
    return load_data(**{**facts, "spec": arguments.data})


def smaller(data: ImageData, samples: int | None) -> ImageData:
    """Of the training images the first `samples` of a fixed shuffle, of the validation images the same share."""
    if samples is None or samples >= len(data.train):
        return data
    share = samples / len(data.train)

    def part(split: Any, count: int) -> Any:
        return split.subset(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count].sort().values)

    return replace(data, train=part(data.train, samples), validation=part(data.validation, round(share * len(data.validation))))


def _run(network: str, row: str, seed: int, data: ImageData, arguments: argparse.Namespace) -> None:
    """Train one cell of the table, unless its file is there or another process that shares the folder is at it."""
    bad = None
    if arguments.noise:
        data, bad = with_wrong_labels(data, arguments.noise, torch.Generator().manual_seed(seed))
    cell = Cell(network=network, row=row, seed=seed, data=data, bad=bad, arguments=arguments)
    if cell.comes_of_another():
        return
    with claimed(cell.lock) as mine:
        if mine and not cell.done.exists():
            cell.train()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the table."""

    network: str
    row: str
    seed: int
    data: ImageData
    bad: Tensor | None
    """bool [N]: which training labels are wrong."""
    arguments: argparse.Namespace

    @property
    def name(self) -> str:
        """Of its files: another setting, or another meaning of the row, is another file."""
        asked = json.dumps([_settings(self.arguments), ROWS[self.row]], sort_keys=True)
        return f"{self.network.replace(':', '-')}_{self.row}_{self.seed}_{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    @property
    def done(self) -> Path:
        """The file of the finished run."""
        return Path(self.arguments.runs / f"{self.name}.json")

    @property
    def state(self) -> Path:
        """The folder that it is resumed from."""
        return Path(self.arguments.runs / "state" / self.name)

    @property
    def lock(self) -> Path:
        """Held by the process that trains it."""
        return self.state.with_suffix(".lock")

    def comes_of_another(self) -> bool:
        """Whether another process is at the whole run that this stopped one is the beginning of."""
        whole = next((row for row in self.arguments.rows if self.row in stops_of(row, self.arguments.rows).values()), None)
        if whole is None:
            return False
        with claimed(replace(self, row=whole).lock) as mine:
            return not mine

    @property
    def config(self) -> TrainConfig:
        """What is trained."""
        given = self.arguments
        own = {"epochs": given.epochs, "batch_size": given.batch_size, "noise": given.noise, "training": given.training}
        return config_of(self.network, self.row, self.seed, **own)

    def start(self) -> tuple[nn.Module, ModelSpec | None]:
        """The network before it is trained."""
        if self.arguments.bundle is not None:
            bundle = open_bundle(self.arguments.bundle)
            return bundle.model, bundle.spec
        kind, _, given = self.network.partition(":")
        spec = completed(ModelSpec(name=kind, args=parse_args(given.split(",") if given else [])), self.data.input_shape, self.data)
        return build(spec, seed=self.seed), spec

    def train(self) -> None:
        """The run, its file, and those of the rows that are its first epochs."""
        model, spec = self.start()
        config, progress = self.config, Bars()
        progress.log(f"{self.network}, {self.row}, seed {self.seed}")
        where = {"output": self.state, "device": self.arguments.device}
        result = train(model, self.data, config, **where, progress=progress, on_epoch=self._stopped(config.epochs))
        self.write(model, spec, result.history, result.to_json()["saving"], result.losses)
        shutil.rmtree(self.state, ignore_errors=True)

    def _stopped(self, epochs: int) -> Callable[[EpochRecord], None]:
        """What writes, after its last epoch, the file of each row that is this one stopped."""
        cells = {round(epochs * share): replace(self, row=row) for share, row in stops_of(self.row, self.arguments.rows).items()}

        def after(record: EpochRecord) -> None:
            cell = cells.get(record.epoch)
            if cell is None or cell.done.exists():
                return
            state = torch.load(self.state / STATE_FILE, map_location="cpu", weights_only=True)
            model, spec = self.start()
            model.load_state_dict(as_state_of(model, state["best"]["weights"]))
            history = [EpochRecord(**one) for one in state["history"]]
            sizes = {"epochs": record.epoch, "samples": len(self.data.train), "batch_size": cell.config.batch_size}
            saving = saving_of_run(cell.config.policy.for_epochs(record.epoch), history, **sizes)
            cell.write(model, spec, history, None if saving is None else asdict(saving), None)

        return after

    def write(
        self, model: nn.Module, spec: ModelSpec | None, history: Sequence[EpochRecord], saving: dict[str, Any] | None, losses: Tensor | None
    ) -> None:
        """The file of a finished run: what it was, what it took, and the test accuracy of its best weights by validation."""
        visits = sum(record.visits for record in history)
        accuracies = [record.validation_accuracy or 0.0 for record in history]
        cell = {
            **{"network": self.network, "row": self.row, "changes": ROWS[self.row], "seed": self.seed},
            **{"settings": _settings(self.arguments), "config": self.config.to_json(), "model": None if spec is None else spec.to_json()},
            "samples": {part: len(getattr(self.data, part)) for part in ("train", "validation", "test")},
            "machine": machine_facts(),
            "test_accuracy": evaluate(model, self.data.test, device=self.arguments.device).accuracy,
            "best_validation_accuracy": max(accuracies),
            "last_validation_accuracy": accuracies[-1],
            "epochs_run": len(history),
            "visits": visits,
            "visits_share": visits / (self.arguments.epochs * len(self.data.train)),
            "cpu_s": sum(record.cpu_seconds for record in history),
            "wall_s": sum(record.seconds for record in history),
            "validation_s": sum(record.validation_seconds for record in history),
            "policy_s": sum(record.policy_seconds for record in history),
            "saving_of_run": saving,
            "history": [asdict(record) for record in history],
            "load": os.getloadavg(),
            "bad_data": None if self.bad is None or losses is None else found(losses, self.bad, self.seed),
        }
        write_json(self.done, cell)


if __name__ == "__main__":
    main()
