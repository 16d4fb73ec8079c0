"""Small networks and their exports, made once: tracing takes a second or more each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fineprune.export.exporter import ExportReport, export_onnx
from support.tiny import INPUT_SHAPE, build


@pytest.fixture(scope="session")
def tiny() -> Callable[..., nn.Module]:
    """Builds the same tiny network each time: masked or dense."""
    return build


@dataclass(frozen=True)
class Exported:
    model: nn.Module
    path: Path
    report: ExportReport


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Exports a model to a fresh folder."""

    def run(model: nn.Module, input_shape: tuple[int, int, int] = INPUT_SHAPE, **arguments: Any) -> Exported:
        path = tmp_path_factory.mktemp("export") / "network.onnx"
        return Exported(model, path, export_onnx(model, input_shape, path, **arguments))

    return run


@pytest.fixture(scope="session")
def packed(tiny: Callable, export: Callable) -> Exported:
    """The masked network with our functions."""
    return export(tiny(), metadata={"accuracy": {"dense": 0.5}, "model": "tiny"})


@pytest.fixture(scope="session")
def plain(tiny: Callable, export: Callable) -> Exported:
    """The masked network in standard operators."""
    return export(tiny(), plain=True)


@pytest.fixture(scope="session")
def dense(tiny: Callable, export: Callable) -> Exported:
    """The network without masks."""
    return export(tiny(masked=False))
