"""The source's tables: settings and reported figures of each cell, for tables.py.

Of chapter 5 the source's numbers 5.4 and 5.8 (FFP on top of other methods) are known to us; its other tables are numbered in the order of
the networks. Figures of SAT and SAL stand beside Adaptive Sparsity Loss, since the source does not say what those are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RESNET = {"epochs": 160, "batch_size": 128, "lr": 0.1, "schedule": "multistep", "milestones": (80, 120), "weight_decay": 1e-4}
VGG = {"epochs": 160, "batch_size": 256, "lr": 0.01, "schedule": "plateau", "weight_decay": 1e-4}
NARROW = {**RESNET, "epochs": 90, "milestones": (30, 60)}
"""Retraining of nets of first width 32, the source's 90 to 180 epochs, and VGGs."""
WIDE = {**RESNET, "epochs": 300, "milestones": (100, 200)}
HUNDRED = {**RESNET, "epochs": 400, "milestones": (100, 200, 300), "gamma": 0.2}
IMAGENET = {**RESNET, "epochs": 90, "batch_size": 256, "milestones": (30, 60)}
SHORT = {**IMAGENET, "epochs": 30, "lr": 0.01, "milestones": (10, 20)}
DELAYED = {**RESNET, "lr": 0.3}

FFP = {"moderate": 0.2, "strong": 0.37}
"""Blocks pruned; weights make up what is left of a cell's share."""
FPGM_RATE = 0.4


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: what its networks are trained on, and how; cells, with what the source reports."""

    title: str
    data: str
    trained: Mapping[str, Any]
    retrained: Mapping[str, Any] | None = None
    """Of compressed networks. None: the table compares trainings."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of every network."""
    prefix: str = ""
    """Of the networks' names among the models."""
    cells: Mapping[str, tuple[float | None, float | None]]
    """network:method -> accuracy in percent, and what the source spares in percent: operations, or time; None where it says nothing."""


def _cells(networks: str, rows: Mapping[str, str]) -> dict[str, tuple[float | None, float | None]]:
    """method -> accuracy/spared of each network, as the source's tables are printed."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for method, figures in rows.items():
        for network, pair in zip(networks.split(), figures.split(), strict=True):
            accuracy, _, spared = pair.partition("/")
            if accuracy != "-":
                found[f"{network}:{method}"] = (float(accuracy), float(spared) if spared else 0.0)
    return found


def _delayed(network: str, accuracies: Mapping[str, str]) -> dict[str, tuple[float | None, float | None]]:
    """algorithm -> test errors with 4, 8 and 16 workers, BatchNorm statistics of all of them (Async-BN)."""
    return {
        f"{network}:{algorithm}-{workers}": (round(100 - float(error), 2), None)
        for algorithm, errors in accuracies.items()
        for workers, error in zip((4, 8, 16), errors.split(), strict=True)
    }


def _spared(saved: Mapping[str, str]) -> dict[str, tuple[float | None, float | None]]:
    """network -> saved by pruning, and with the automatic rate; accuracy regular, and pruned."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for network, figures in saved.items():
        pruned, automatic, regular, accuracy = map(float, figures.split())
        found |= {f"{network}:regular": (regular, 0.0), f"{network}:pruned": (accuracy, pruned)}
        found[f"{network}:pruned+auto"] = (None, automatic)
    return found


TABLES: dict[str, Table] = {
    "3.1": Table(
        title="data pruning, CIFAR-10: accuracy and time saved",
        data="cifar10",
        trained=RESNET,
        cells=_spared(
            {
                "lenet": "11.80 18.67 75.15 74.72",
                "vgg13": "7.40 13.75 93.92 93.56",
                "vgg16": "7.56 13.93 93.79 93.44",
                "vgg19": "7.65 14.72 93.35 93.30",
                "resnet18-3stage": "12.76 21.43 91.25 91.16",
                "resnet34-3stage": "13.43 21.86 92.86 92.85",
                "resnet50-3stage": "13.92 22.88 93.75 93.46",
                "wrn10": "13.73 22.54 92.13 91.78",
                "wrn16": "13.81 23.37 94.22 94.20",
                "wrn22": "14.29 24.46 95.08 94.71",
            }
        ),
    ),
    "4.1": Table(
        title="asynchronous SGD, CIFAR-10, ResNet-18",
        data="cifar10",
        trained=DELAYED,
        cells={"cifar-resnet18:sgd-1": (94.85, None)}
        | _delayed(
            "cifar-resnet18",
            {"ssgd": "5.57 6.01 6.20", "asgd": "5.65 6.27 6.41", "dc-asgd": "5.22 5.58 5.83", "lc-asgd": "4.87 4.96 5.52"},
        ),
    ),
    "4.2": Table(
        title="asynchronous SGD, ImageNet, ResNet-50",
        data="imagefolder:imagenet",
        prefix="torchvision:",
        trained={**DELAYED, "epochs": 90, "milestones": (30, 60)},
        cells=_delayed(
            "resnet50",
            {"ssgd": "24.49 25.11 25.62", "asgd": "24.90 25.64 25.81", "dc-asgd": "24.46 24.89 25.23", "lc-asgd": "23.86 24.07 24.82"},
        ),
    ),
    "5.2": Table(
        title="CIFAR-10, ResNets of first width 32",
        data="cifar10",
        trained=RESNET,
        retrained=NARROW,
        arguments={"width": 32},
        cells=_cells(
            "resnet20 resnet32 resnet56",
            {
                "baseline": "93.78 94.35 94.81",
                "asl": "91.22/72.5 93.39/73.8 94.55/71.7",
                "fpgm": "93.35/53.8 93.94/54.2 94.52/54.6",
                "moderate": "93.61/44.5 94.23/46.0 94.78/55.3",
                "strong": "93.42/72.8 94.15/74.0 94.62/74.8",
            },
        ),
    ),
    "5.3": Table(
        title="CIFAR-10, VGG",
        data="cifar10",
        trained=VGG,
        retrained=NARROW,
        cells=_cells(
            "vgg13 vgg16 vgg19",
            {
                "baseline": "94.07 93.74 93.58",
                "asl": "93.45/73.3 93.21/73.8 93.08/73.1",
                "fpgm": "93.38/55.0 93.24/53.5 92.88/53.0",
                "moderate": "93.95/67.9 93.76/62.3 93.50/60.8",
                "strong": "93.80/77.7 93.35/74.6 93.26/77.9",
            },
        ),
    ),
    "5.4": Table(
        title="CIFAR-10, FFP on top of FPGM, ResNets of first width 32",
        data="cifar10",
        trained=RESNET,
        retrained=NARROW,
        arguments={"width": 32},
        cells=_cells(
            "resnet20 resnet32 resnet56",
            {
                "fpgm": "93.35/53.8 93.94/54.2 94.52/54.6",
                "fpgm+15": "93.30/60.7 93.88/61.1 94.49/61.4",
            },
        ),
    ),
    "5.5": Table(
        title="CIFAR-10, ResNets of first width 83",
        data="cifar10",
        trained=RESNET,
        retrained=WIDE,
        arguments={"width": 83},
        cells=_cells(
            "resnet20 resnet32 resnet56",
            {
                "baseline": "95.43 95.55 95.68",
                "moderate": "95.45/44.51 95.65/46.13 95.68/47.83",
                "strong": "95.28/72.20 95.37/73.26 95.49/75.01",
            },
        ),
    ),
    "5.6": Table(
        title="CIFAR-100, ResNets of first width 83",
        data="cifar100",
        trained=RESNET,
        retrained=HUNDRED,
        arguments={"width": 83},
        cells=_cells(
            "resnet32 resnet56 resnet110",
            {
                "baseline": "78.45 78.52 78.90",
                "moderate": "78.59/41.43 78.51/43.09 78.85/45.34",
                "strong": "78.42/70.64 78.40/71.13 78.73/73.61",
            },
        ),
    ),
    "5.7": Table(
        title="ImageNet, ResNets",
        data="imagefolder:imagenet",
        prefix="torchvision:",
        trained=IMAGENET,
        retrained=SHORT,
        cells=_cells(
            "resnet18 resnet34 resnet50",
            {
                "baseline": "69.76 73.30 76.15",
                "fpgm": "68.33/43.2 72.36/44.3 75.21/42.7",
                "moderate": "69.60/57.2 73.35/58.7 76.02/58.7",
                "strong": "68.91/73.2 73.13/72.9 75.88/72.7",
            },
        ),
    ),
    "5.8": Table(
        title="CIFAR-10, FFP on top of other methods, ResNet-20 of first width 83",
        data="cifar10",
        trained=RESNET,
        retrained=WIDE,
        arguments={"width": 83},
        cells=_cells(
            "resnet20",
            {
                **{"asl": "94.60/72.49", "asl+15": "94.62/76.75", "asl+30": "94.46/80.76"},
                **{"fpgm": "95.12/53.82", "fpgm+15": "95.12/60.98", "fpgm+30": "95.05/68.26"},
            },
        ),
    ),
    "5.9": Table(
        title="ImageNet, VGG",
        data="imagefolder:imagenet",
        prefix="torchvision:",
        trained={**IMAGENET, "lr": 0.01},
        retrained=SHORT,
        cells=_cells(
            "vgg13_bn vgg16_bn vgg19_bn",
            {
                "baseline": "71.55 73.37 74.24",
                "fpgm": "70.59/40.8 72.30/41.3 73.08/41.5",
                "moderate": "71.46/61.0 73.26/61.3 74.03/60.3",
                "strong": "71.18/73.7 73.15/73.3 73.90/73.4",
            },
        ),
    ),
}
