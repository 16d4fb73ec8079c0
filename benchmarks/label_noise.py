"""Which statistic of a training finds wrong labels: some are planted, and each view of the losses is asked for as many samples.

    python benchmarks/label_noise.py [--json FILE] [--data SPEC] [--samples N] [--noise 0.1] [--epochs 12] [--seeds N ...] [--sheet FOLDER]

LeNet is trained on `samples` images of which a share has a label drawn from the other classes; validation labels stay right. Views:
`high-loss` (highest mean loss over the epochs that visited a sample), `high-count` (Algorithm 1's count: share of visits with a loss of
at least the epoch's mean), `most-pruned` (left out most often, what the source calls suspicious; ties: the higher loss),
`pruned-alone` (ties at random). Chance is the share planted. `easiest` is fine-pruning with order=easiest.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fineprune.common.files import write_json
from fineprune.export.machine import machine_facts
from fineprune.models.data import ImageData, data_from_arrays, load_data
from fineprune.models.training import TrainConfig, train
from fineprune.models.training.sampling.loss_log import SampleFacts, precision_recall
from fineprune.models.zoo import ModelSpec, build
from fineprune.networks import completed
from fineprune.training_report import write_suspects

POLICIES = {
    "none": "none",
    "fine-pruning": "fine-pruning",
    "easiest": {"name": "fine-pruning", "order": "easiest"},
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


def with_wrong_labels(data: ImageData, samples: int, share: float, seed: int) -> tuple[ImageData, Tensor]:
    """`samples` of the training images, and which of them (bool [samples]) got the label of another class."""
    generator = torch.Generator().manual_seed(seed)
    train, chosen = _arrays(data, data.train.subset(torch.randperm(len(data.train), generator=generator)[:samples])), torch.zeros(samples)
    chosen[torch.randperm(samples, generator=generator)[: round(share * samples)]] = 1
    bad, labels = chosen.bool(), train[1].clone()
    other = torch.randint(1, len(data.classes), (samples,), generator=generator)
    labels[bad] = (labels[bad] + other[bad]) % len(data.classes)
    validation = _arrays(data, data.validation)
    return data_from_arrays(f"{data.name}, noisy", (train[0], labels), validation, validation=validation, classes=data.classes), bad


def _arrays(data: ImageData, split: Any) -> tuple[Tensor, Tensor]:
    """uint8 [N,H,W,C] and labels, without normalisation."""
    scale, shift = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.std, data.mean))
    images = torch.cat([(batch.images * scale + shift).mul(255).round().clamp(0, 255).byte() for batch in split.batches(1000)])
    return images.permute(0, 2, 3, 1).contiguous(), split.labels


def _rows(data: ImageData, policy: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    noisy, bad = with_wrong_labels(data, arguments.samples, arguments.noise, seed)
    model = build(completed(ModelSpec(name="lenet"), noisy.input_shape, noisy), seed=seed)
    config = TrainConfig(epochs=arguments.epochs, lr=0.05, batch_size=64, seed=seed, policy=POLICIES[policy], record_losses=True)  # type: ignore[arg-type]
    losses = train(model, noisy, config, device="cpu").losses
    if losses is None:
        raise RuntimeError("the run kept no losses")
    facts = SampleFacts.of(losses)
    orders = {"high-loss": facts.order("high-loss"), "high-count": facts.high_share.argsort(descending=True, stable=True)}
    if policy != "none":
        orders["most-pruned"] = facts.order("most-pruned")
        anyhow = torch.randperm(arguments.samples, generator=torch.Generator().manual_seed(seed))
        orders["pruned-alone"] = anyhow[facts.pruned[anyhow].argsort(descending=True, stable=True)]
    if arguments.sheet and policy == "fine-pruning" and seed == arguments.seeds[0]:
        write_suspects(arguments.sheet, losses, noisy, 36, config.policy)
    number, rows = int(bad.sum()), []
    for view, order in orders.items():
        precision, recall = precision_recall(order, bad, number)
        rows.append({"policy": policy, "seed": seed, "view": view, "asked": number, "precision": precision, "recall": recall})
    return rows


if __name__ == "__main__":
    main()
