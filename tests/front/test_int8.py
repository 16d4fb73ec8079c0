"""Bundles as eight-bit files: command line, recipe entry, what they cost, and which layers stay in float32."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

import fineprune
from fineprune.common.progress import Silent
from fineprune.compressor.bundle import Bundle
from fineprune.export.int8.quantiser import Int8Config
from fineprune.int8 import Int8Export, _dense, int8_config, quantiser_of
from fineprune.models.data import load_data
from fineprune.unlabelled import AGREEMENT
from support.command import fineprune as command
from support.command import succeed


def test_an_int8_file_says_what_it_costs(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    path = tmp_path / "m.onnx"
    result = succeed("export", bundle, *trust, "--int8", "--int8-images", 50, "--output", path)
    facts = json.loads(Path(f"{path}.int8.json").read_text())
    found = facts["accuracy"]
    assert (facts["ranges"], facts["images"], facts["kept_in_float32"]) == ("mse", 50, [])
    assert found["samples"] == 80 and abs(found["int8"] - found["float32"]) < 0.08 and found["agreement"] > 0.85
    assert f"float32 {found['float32']:.2%}, int8 {found['int8']:.2%}" in " ".join(result.out.split())
    parity = json.loads(Path(f"{path}.parity.json").read_text())
    assert [runtime["runtime"] for runtime in parity["runtimes"]] == ["onnx.reference", "engine"] and parity["passed"]
    masked = Bundle.load(bundle).masks["ffp"]
    assert masked and len(facts["block_masked"]) == len(masked)
    assert f"{len(masked)} convolutions with block masks are integers in the engine alone" in " ".join(result.out.split())
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert "QuantizeLinear" in kinds and "Gemm" in kinds
    properties = {one.key: one.value for one in onnx.load(path).metadata_props}
    assert json.loads(properties["fineprune.int8"])["layers"] == facts["layers"] > 0


def test_a_drop_of_nothing_keeps_what_it_needs(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    options = ["--int8", "--int8-ranges", "minmax", "--max-drop", 0, "--parity-samples", 0, "--json"]
    facts = command("export", bundle, *trust, *options, "--output", tmp_path / "m.onnx").json()["int8"]
    assert facts["max_drop"] == 0 and len(facts["kept_in_float32"]) <= facts["layers"]


def test_an_export_leaves_nothing_of_an_earlier_one_beside_it(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    path = tmp_path / "m.onnx"
    options = ["export", bundle, *trust, "--output", path]
    succeed(*options, "--int8", "--int8-images", 8, "--parity-samples", 2)
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "m.onnx.parity.json", "m.onnx.int8.json"}
    succeed(*options, "--parity-samples", 2)
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "m.onnx.parity.json"}
    succeed(*options, "--parity-samples", 0)
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-drop", 1], "belong to --int8"),
        (["--int8", "--int8-ranges", "best"], "int8 ranges are minmax, percentile, mse, got 'best'"),
        (["--int8", "--int8-images", 0], "at least 1, got 0"),
        (["--int8", "--max-drop", -1], "between 0 and 100, got -1"),
    ],
)
def test_settings_are_checked(bundle: Path, tmp_path: Path, trust: list[object], options: list[object], message: str) -> None:
    result = command("export", bundle, *trust, *options, "--output", tmp_path / "m.onnx")
    assert result.code == 2 and message in " ".join(result.err.split())
    assert not (tmp_path / "m.onnx").exists()


def test_errors_name_the_file_that_was_asked_for(
    bundle: Path, tmp_path: Path, trust: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fineprune.export.parity.TOLERANCES", {"float32": 0.0})
    result = command("export", bundle, *trust, "--int8", "--output", tmp_path / "m.onnx")
    said = " ".join(result.err.split())
    assert result.code == 1 and "m.onnx differs from the model in onnxruntime" in said and "float32.onnx" not in said
    assert not (tmp_path / "m.onnx").exists()


def test_images_of_all_classes_judge(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fineprune.int8.JUDGED", 40)
    images = load_data(data)
    images = replace(images, validation=images.train.subset(images.train.labels.argsort()))
    for held in (images, replace(images, validation=images.train.subset(torch.arange(0)))):
        judge = quantiser_of(Int8Export(config=Int8Config(max_drop=1.0, images=16), data=held), Silent()).judge
        assert judge is not None and judge.labels is not None
        assert len(judge.images) == len(judge.labels) == 40 and len(set(judge.labels)) > 5


def test_the_dense_accuracy_is_of_the_same_images(bundle: Path, data: str) -> None:
    opened = Bundle.load(bundle)
    known = opened.facts["accuracy"]
    alike = {"split": known["split"], "samples": known["samples"], "measure": "accuracy"}
    assert _dense(alike, opened) == known["dense"]
    for other in ({"samples": 1}, {"split": "validation"}):
        assert _dense({**alike, **other}, opened) is None
    known["measure"] = AGREEMENT
    assert _dense(alike, opened) is None


def test_recipes_and_python_give_the_same_settings() -> None:
    assert int8_config(None) is int8_config(False) is None
    assert int8_config(True) == Int8Config()
    assert int8_config({"max_drop": 0.2, "images": 64}) == Int8Config(max_drop=0.2, images=64)
    for wrong in ({"range": "mse"}, "yes", 3, {"ranges": []}, {"images": True}):
        with pytest.raises(fineprune.common.errors.UsageError, match="int8"):
            int8_config(wrong)
