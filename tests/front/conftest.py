"""A small real data set, a network trained on it and its bundle, made once through the command line."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from support.command import TRAINING, succeed

NETWORK = """
import os
import signal

import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, width=4, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding="same", bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width)
        self.grouped = nn.Conv2d(width, 2 * width, 3, padding=2, dilation=2, groups=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        log = os.environ.get("FORWARDS")
        if log:
            with open(log, "a") as stream:
                stream.write(".")
            if os.path.getsize(log) == int(os.environ.get("STOP_AT", 0)):
                os.kill(os.getpid(), getattr(signal, os.environ["STOP_BY"]))
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.grouped(torch.relu(self.depthwise(x))))
        return self.head(torch.relu(self.up(x)).amax((2, 3)))


def small(width: int = 4, num_classes: int = 10):
    return Small(width, num_classes)
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's files are."""
    return tmp_path_factory.mktemp("front")


@pytest.fixture(scope="session")
def data(folder: Path) -> str:
    """240 + 80 scanned digits of 16x16 as npz:FILE."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.kron(digits.images[:320] * 15.9, np.ones((1, 2, 2))).astype(np.uint8)
    labels = digits.target[:320]
    path = folder / "digits.npz"
    np.savez(path, train_images=images[:240], train_labels=labels[:240], test_images=images[240:], test_labels=labels[240:])
    return f"npz:{path}"


@pytest.fixture(scope="session")
def network(folder: Path) -> str:
    """file.py:factory of a network with depthwise, grouped, dilated, 'same'-padded and transposed convolutions."""
    path = folder / "net.py"
    path.write_text(NETWORK)
    return f"{path}:small"


@pytest.fixture(scope="session")
def named(network: str, data: str) -> list[object]:
    """The options that name the network, untrained, and its data."""
    return ["--model", network, "--model-arg", "width=6", "--data", data]


@pytest.fixture(scope="session")
def trust(network: str, data: str) -> list[object]:
    """The options that allow a bundle or recipe to use the network and its data."""
    return ["--trust", network, "--trust", data]


@pytest.fixture(scope="session")
def checkpoint(folder: Path, named: list[object]) -> Path:
    """The network, trained a little."""
    succeed("train", *named, *TRAINING, "--output", folder / "dense")
    return folder / "dense" / "model.safetensors"


@pytest.fixture(scope="session")
def trained(named: list[object], checkpoint: Path) -> list[object]:
    """The options that name the trained network and its data."""
    return [*named, "--checkpoint", checkpoint]


@pytest.fixture(scope="session")
def bundle(folder: Path, trained: list[object]) -> Path:
    """The trained network, compressed."""
    succeed("compress", *trained, "--ffp", 0.3, "--fwp", 0.5, "--epochs", 1, "--output", folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without the switches of NETWORK."""
    for name in ("FORWARDS", "STOP_AT", "STOP_BY"):
        if name in os.environ:
            monkeypatch.delenv(name)
    return monkeypatch
