"""Plugin of pytest for a machine without torch: files that files.py made elsewhere stand for the fixtures of tests/export that export."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(os.environ["FINEPRUNE_FILES"]) / "fixtures"


def _exported(name: str) -> SimpleNamespace:
    layers = [SimpleNamespace(**facts) for facts in json.loads((FOLDER / "facts.json").read_text())[name]]
    return SimpleNamespace(path=FOLDER / f"{name}.onnx", report=SimpleNamespace(layers=layers))


@pytest.fixture(scope="session")
def packed() -> SimpleNamespace:
    return _exported("packed")


@pytest.fixture(scope="session")
def plain() -> SimpleNamespace:
    return _exported("plain")


@pytest.fixture(scope="session")
def dense() -> SimpleNamespace:
    return _exported("dense")
