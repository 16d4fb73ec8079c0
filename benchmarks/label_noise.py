"""Which statistic of a training finds wrong labels: some are planted, and each view of the losses is asked for as many samples.

    python benchmarks/label_noise.py [--json FILE] [--data SPEC] [--samples N] [--noise 0.1] [--epochs 12] [--seeds N ...] [--sheet FOLDER]

LeNet is trained on `samples` images of which a share has a label drawn from the other classes; validation labels stay right. Views:
`high-loss` (highest mean loss over the epochs that visited a sample), `high-count` (Algorithm 1's count: share of visits with a loss of
at least the epoch's mean), `most-pruned` (left out most often, what the source calls suspicious; ties: the higher loss),
`pruned-alone` (ties at random). Chance is the share planted. `easiest` and `random` are fine-pruning with these orders.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fineprune.common.files import write_json
from fineprune.export.machine import machine_facts
from fineprune.models.data import ImageData, load_data
from fineprune.models.training import TrainConfig, train
from fineprune.models.training.device import derive_seed
from fineprune.models.training.sampling.loss_log import SampleFacts, precision_recall
from fineprune.models.zoo import ModelSpec, build
from fineprune.networks import completed
from fineprune.training_report import write_suspects

POLICIES = {
    "none": "none",
    "fine-pruning": "fine-pruning",
    "easiest": {"name": "fine-pruning", "order": "easiest"},
    "random": {"name": "fine-pruning", "order": "random"},
    "infobatch": "infobatch",
}
"""Row -> policy."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all figures into this JSON file.")
    parser.add_argument("--data", default="fashion-mnist", metavar="SPEC", help="The data set, as `fineprune --data` takes it.")
    parser.add_argument("--samples", type=int, default=10_000, help="How many training images to take.")
    parser.add_argument("--noise", type=float, default=0.1, help="What share of the labels to make wrong.")
    parser.add_argument("--epochs", type=int, default=12, help="How many epochs a run has.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Repeat the runs with each of these seeds.")
    parser.add_argument(
        "--sheet", type=Path, metavar="FOLDER", help="Write suspects.csv and contact sheets of the first fine-pruning run into this folder."
    )
    arguments = parser.parse_args()
    data = load_data(arguments.data)
    rows = [row for seed in arguments.seeds for policy in POLICIES for row in _rows(data, policy, seed, arguments)]
    print(f"LeNet, {arguments.samples} images of {arguments.data}, {arguments.noise:.0%} wrong labels, {arguments.epochs} epochs")
    print(f"{'policy':14} {'view':12} {'precision = recall %':>20}  by seed")
    for policy in POLICIES:
        for view in dict.fromkeys(row["view"] for row in rows if row["policy"] == policy):
            values = [100 * row["precision"] for row in rows if (row["policy"], row["view"]) == (policy, view)]
            print(f"{policy:14} {view:12} {statistics.fmean(values):20.1f}  {' '.join(f'{value:.1f}' for value in values)}")
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key not in ("json", "sheet")}
        write_json(arguments.json, {"machine": machine_facts(), "settings": settings, "rows": rows})


def with_wrong_labels(data: ImageData, share: float, generator: torch.Generator) -> tuple[ImageData, Tensor]:
    """The data with the label of another class for a share of the training images, and for which of them (bool [N])."""
    samples, labels = len(data.train), data.train.labels.clone()
    bad = torch.zeros(samples, dtype=torch.bool)
    bad[torch.randperm(samples, generator=generator)[: round(share * samples)]] = True
    other = torch.randint(1, len(data.classes), (samples,), generator=generator)
    labels[bad] = (labels[bad] + other[bad]) % len(data.classes)
    return replace(data, train=data.train.relabelled(labels)), bad


def found(losses: Tensor, bad: Tensor, seed: int) -> dict[str, tuple[float, float]]:
    """By view: precision and recall of as many samples as are bad (bool [N]), so that the two are equal. losses: [epochs, N], NaN where a
    sample was left out; views of what was pruned are there where something was."""
    facts, number = SampleFacts.of(losses), int(bad.sum())
    orders = {"high-loss": facts.order("high-loss"), "high-count": facts.high_share.argsort(descending=True, stable=True)}
    if len(facts.pruned.unique()) > 1:
        orders["most-pruned"] = facts.order("most-pruned")
        anyhow = torch.randperm(len(bad), generator=torch.Generator().manual_seed(derive_seed(seed, "ties")))
        orders["pruned-alone"] = anyhow[facts.pruned[anyhow].argsort(descending=True, stable=True)]
    return {view: precision_recall(order, bad, number) for view, order in orders.items()}


def _rows(data: ImageData, policy: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    chosen = data.train.subset(torch.randperm(len(data.train), generator=generator)[: arguments.samples])
    noisy, bad = with_wrong_labels(replace(data, train=chosen), arguments.noise, generator)
    model = build(completed(ModelSpec(name="lenet"), noisy.input_shape, noisy), seed=seed)
    config = TrainConfig(epochs=arguments.epochs, lr=0.05, batch_size=64, seed=seed, policy=POLICIES[policy], record_losses=True)  # type: ignore[arg-type]
    losses = train(model, noisy, config, device="cpu").losses
    if losses is None:
        raise RuntimeError("the run kept no losses")
    if arguments.sheet and policy == "fine-pruning" and seed == arguments.seeds[0]:
        write_suspects(arguments.sheet, losses, noisy, 36, config.policy)
    return [
        {"policy": policy, "seed": seed, "view": view, "asked": int(bad.sum()), "precision": precision, "recall": recall}
        for view, (precision, recall) in found(losses, bad, seed).items()
    ]


if __name__ == "__main__":
    main()
