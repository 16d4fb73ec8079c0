"""A sound bundle of a small network of the zoo, to change as an attacker would."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fineprune
from fineprune.models.data.load import data_from_arrays
from fineprune.models.zoo import ModelSpec

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle; its manifest names the data set digits."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 32, 32), dtype=torch.uint8, generator=generator)
    data = data_from_arrays("digits", (images, torch.arange(20) % 10))
    folder = tmp_path_factory.mktemp("attacks") / "sound"
    fineprune.compress(ModelSpec(name="lenet"), data, ffp=0.2, fwp=0.3, epochs=0, output=folder)
    return folder


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A copy of the bundle whose manifest `change` edits in place."""

    def edited(change: Change) -> Path:
        folder = Path(shutil.copytree(sound, tmp_path / "bundle", dirs_exist_ok=True))
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return edited


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that only an attack would make."""
    return tmp_path / "canary"
