"""Nothing is unpickled, wherever a file could hold a pickle."""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fineprune.common.errors import RunError
from fineprune.compressor.bundle import Bundle
from fineprune.models.data import load_data
from fineprune.models.training.state import STATE_FILE, load_state
from fineprune.models.zoo import build, load_checkpoint


class Touch:
    """Unpickled, it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


def torch_archive(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def archive_with(pickled: bytes) -> bytes:
    """torch's archive of a sound state dict whose pickle is exchanged."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_archive({"w": torch.zeros(2)}))) as sound, zipfile.ZipFile(stream, "w") as changed:
        for name in sound.namelist():
            changed.writestr(name, pickled if name.endswith("data.pkl") else sound.read(name))
    return stream.getvalue()


FORMS: dict[str, Callable[[Touch], bytes]] = {
    "torch archive": torch_archive,
    "within a state dict": lambda touch: torch_archive({"state_dict": {"w": torch.zeros(2), "x": touch}}),
    "exchanged": lambda touch: archive_with(pickle.dumps(touch)),
    "old torch format": lambda touch: _old_format({"w": touch}),
    "plain pickle": pickle.dumps,
}


def _old_format(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.fixture(params=FORMS)
def content(request: pytest.FixtureRequest, canary: Path) -> bytes:
    return FORMS[request.param](Touch(canary))


def test_the_attack_itself_works(canary: Path) -> None:
    for name, form in FORMS.items():
        load = pickle.load if name == "plain pickle" else torch.load
        load(io.BytesIO(form(Touch(canary))), **({} if load is pickle.load else {"weights_only": False}))
        assert canary.exists(), name
        canary.rmdir()


def test_checkpoints(content: bytes, canary: Path, tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors", "w.npz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RunError, match=name):
            load_checkpoint(build("lenet"), tmp_path / name)
    assert not canary.exists()


def test_the_state_that_a_training_resumes_from(content: bytes, canary: Path, tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(RunError, match=r"training\.pt is not a whole training state"):
        load_state(tmp_path, {})
    assert not canary.exists()


def test_arrays(content: bytes, canary: Path, tmp_path: Path) -> None:
    objects = np.empty(1, dtype=object)
    objects[0] = Touch(canary)
    np.savez(tmp_path / "objects.npz", images=objects, labels=np.zeros(1, np.int64))
    np.savez(tmp_path / "names.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.zeros(4, np.int64), classes=objects)
    np.save(tmp_path / "single.npy", objects, allow_pickle=True)
    (tmp_path / "raw.npz").write_bytes(content)
    for name in ("objects.npz", "names.npz", "single.npy", "raw.npz"):
        with pytest.raises(RunError, match=name):
            load_data(f"npz:{tmp_path / name}")
    assert not canary.exists()


def test_bundles(sound: Path, content: bytes, canary: Path, tmp_path: Path) -> None:
    for name in ("weights.safetensors", "masks.safetensors", "manifest.json"):
        folder = Path(shutil.copytree(sound, tmp_path / f"of {name}"))
        (folder / name).write_bytes(content)
        if name != "manifest.json":
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["sha256"][name] = sha256(content).hexdigest()
            (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RunError, match=name):
            Bundle.load(folder)
    assert not canary.exists()
