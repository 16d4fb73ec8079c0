"""A file does not choose what else is read or written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save

from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import FinepruneError, RunError
from fineprune.common.files import sha256
from fineprune.compressor.bundle import Bundle
from fineprune.export.engine import Session
from fineprune.export.layer_times import layer_times
from fineprune.export.runtimes import OnnxReference, OnnxRuntime
from fineprune.models.training.state import STATE_FILE, load_state
from support.command import fineprune as run

UP = "../../../canary"


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "masks.safetensors"])
def test_links_out_of_a_bundle(name: str, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "b"))
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=f"b/{name} is a link to {tmp_path}/elsewhere, outside its folder; put the file itself there"):
        Bundle.load(folder)
    (folder / name).unlink()
    (tmp_path / "elsewhere").rename(folder / "within")
    (folder / name).symlink_to("within")
    (tmp_path / "link").symlink_to(folder)
    assert Bundle.load(tmp_path / "link").weights, "a link of the user's own to the folder, and one within it, are fine"


def test_pipes_are_not_waited_for(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "b"))
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")
    with pytest.raises(RunError, match=r"weights\.safetensors is (missing|not an ordinary file)"):
        Bundle.load(folder)
    os.mkfifo(tmp_path / STATE_FILE)
    with pytest.raises(RunError, match=r"training\.pt is not an ordinary file"):
        load_state(tmp_path, {})


def test_links_out_of_statistics_and_of_a_training(tmp_path: Path) -> None:
    sums = Statistics(kind="blocks", settings={}, samples=1, layers={"a": {"frequency": torch.ones(1, 2, 2)}})
    for name in ("statistics.json", "statistics.safetensors"):
        sums.save(tmp_path / name / "blocks")
        shutil.move(tmp_path / name / "blocks" / name, tmp_path / f"other {name}")
        (tmp_path / name / "blocks" / name).symlink_to(tmp_path / f"other {name}")
        with pytest.raises(RunError, match=f"blocks/{name} is a link to"):
            Statistics.load(tmp_path / name / "blocks")
    torch.save({"format": 2, "identity": {}}, tmp_path / "state")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / STATE_FILE).symlink_to(tmp_path / "state")
    with pytest.raises(RunError, match=r"training\.pt is a link to"):
        load_state(tmp_path / "t", {})


def test_names_of_layers_are_no_paths(bundle: Callable[..., Path], tmp_path: Path) -> None:
    folder = bundle(lambda manifest: None)
    masks = load_file(folder / "masks.safetensors")
    (folder / "masks.safetensors").write_bytes(save({key.replace("conv2", UP): value for key, value in masks.items()}))

    def change(manifest: dict[str, Any]) -> None:
        manifest["mask_shapes"] = {name.replace("conv2", UP): shapes for name, shapes in manifest["mask_shapes"].items()}
        manifest["macs"]["layers"] = [{**layer, "name": UP} for layer in manifest["macs"]["layers"]]
        manifest["model"]["name"] = manifest["data"]["name"] = UP
        manifest["sha256"]["masks.safetensors"] = sha256(folder / "masks.safetensors")

    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    before = {path for path in tmp_path.rglob("*") if "canary" not in path.name}
    assert run("macs", folder).code
    assert run("report", folder).code == 0
    assert set(tmp_path.rglob("*")) == before | {tmp_path / "bundle.html"}
    Bundle.load(folder).save(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"manifest.json", "weights.safetensors", "masks.safetensors"}


@pytest.mark.parametrize("location", ["../secret", "{}/secret", "link", "folder/../../secret"])
def test_external_data_of_onnx_files(location: str, tmp_path: Path) -> None:
    """Not read by any runtime that we hand a file: neither up, absolute, nor through a link."""
    (tmp_path / "secret").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (tmp_path / "m" / "folder").mkdir(parents=True)
    (tmp_path / "m" / "link").symlink_to(tmp_path / "secret")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location.format(tmp_path))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("input", "output"))
    graph = helper.make_graph([helper.make_node("Add", ["input", "w"], ["output"])], "g", [x], [y], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "m" / "m.onnx"
    path.write_bytes(model.SerializeToString())
    opened: list[Callable[[], Any]] = [
        lambda: Session(path),
        lambda: OnnxRuntime("onnxruntime", path).load(1),
        lambda: OnnxReference("onnx.reference", path).load(1),
        lambda: layer_times(path, path, np.zeros((1, 4), np.float32), rounds=1),
    ]
    for open_it in opened:
        with pytest.raises(FinepruneError):
            open_it()
