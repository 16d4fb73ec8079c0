"""Bundles as eight-bit files: command line, recipe entry, what they cost, and which layers stay in float32."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fineprune
from fineprune.common.errors import UsageError
from fineprune.common.progress import Silent
from fineprune.compressor.bundle import Bundle
from fineprune.export.exporter import export_onnx
from fineprune.export.int8.quantiser import Int8Config
from fineprune.int8 import Int8Export, _dense, cost, cost_line, int8_config, quantiser_of
from fineprune.models.data import load_data
from fineprune.models.objective import AGREEMENT
from fineprune.samples import calibration_data
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
        assert judge is not None and len(judge.images) == 40
        shares = [judge.score(np.eye(10)[[digit] * 40], np.zeros((40, 10))) for digit in range(10)]  # of images of each digit
        assert sum(shares) == pytest.approx(100) and sum(share > 0 for share in shares) > 5


def test_the_dense_accuracy_is_of_the_same_images(bundle: Path, data: str) -> None:
    opened = Bundle.load(bundle)
    known = opened.facts["accuracy"]
    alike = {"split": known["split"], "samples": known["samples"], "measure": "accuracy"}
    assert _dense(alike, opened) == known["dense"]
    for other in ({"samples": 1}, {"split": "validation"}):
        assert _dense({**alike, **other}, opened) is None
    known["measure"] = AGREEMENT.name
    assert _dense(alike, opened) is None


def test_recipes_and_python_give_the_same_settings() -> None:
    assert int8_config(None) is int8_config(False) is None
    assert int8_config(True) == Int8Config()
    assert int8_config({"max_drop": 0.2, "images": 64}) == Int8Config(max_drop=0.2, images=64)
    for wrong in ({"range": "mse"}, "yes", 3, {"ranges": []}, {"images": True}):
        with pytest.raises(fineprune.common.errors.UsageError, match="int8"):
            int8_config(wrong)


def dense() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        body = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


X = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
CLASSES = torch.bucketize(X.mean((1, 2, 3)), torch.tensor([-0.05, 0.05]))
TARGETS = torch.stack([X.mean((1, 2, 3)), X.std((1, 2, 3)), X.amax((1, 2, 3))], 1)
ERROR = fineprune.Metric("squared error", lambda outputs, targets: (outputs - targets).square().mean(1), higher_is_better=False, unit="mm2")
FORMS: dict[str, tuple[Any, set[str]]] = {
    "inputs": (X, {"agreement"}),
    "pair": ((X, CLASSES), {"dense", "float32", "int8", "agreement"}),
    "data set": (TensorDataset(X, CLASSES), {"dense", "float32", "int8", "agreement"}),
    "loader": (DataLoader(TensorDataset(X, CLASSES), batch_size=7, shuffle=True), {"dense", "float32", "int8", "agreement"}),
    "other targets": (TensorDataset(X, TARGETS), {"agreement"}),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a network and data that were given in Python: its manifest names neither."""
    folder = tmp_path_factory.mktemp("given") / "b"
    fineprune.compress(dense(), (X, CLASSES), preset="taylor", prune=0.4, epochs=1, qat_epochs=1, output=folder, progress=Silent())
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_samples_given_in_python_calibrate(form: str, given: Path, tmp_path: Path) -> None:
    samples, measured = FORMS[form]
    exported = fineprune.to_onnx(given, tmp_path / "m.onnx", int8=True, samples=samples, model=dense(), progress=Silent())
    assert exported.int8 is not None and exported.parity is not None and exported.parity.passed
    found = exported.int8["accuracy"]
    assert exported.int8["images"] == 54 and found["samples"] == 6 and found.keys() - {"split", "samples", "measure", "unit"} >= measured
    assert measured == {key for key in ("dense", "float32", "int8", "agreement") if key in found} and found["agreement"] > 0.8
    assert not {"QuantizeLinear", "Conv"} - {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}


class LargestError:
    """A figure of a whole set: the largest error of any sample."""

    higher_is_better = False

    def __init__(self) -> None:
        self.errors: list[torch.Tensor] = []

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.errors.append((outputs - targets).abs().amax(1))

    def compute(self) -> float:
        return float(torch.cat(self.errors).max())


def test_a_figure_of_a_whole_set_says_what_int8_costs(given: Path, tmp_path: Path) -> None:
    data, path = calibration_data((X, TARGETS), LargestError()), tmp_path / "m.onnx"
    model = fineprune.load(given, dense())
    export_onnx(model, (1, 8, 8), path)
    found = cost(path, path, data, None, Silent())
    with torch.no_grad():
        errors = [(model(batch.images) - batch.labels).abs().amax(1) for batch in getattr(data, data.held_out).batches(4)]
    assert (found["measure"], found["higher_is_better"]) == ("LargestError", False)
    assert found["float32"] == found["int8"] == pytest.approx(float(torch.cat(errors).max()), rel=1e-4)


def test_a_users_metric_says_what_int8_costs(given: Path, tmp_path: Path) -> None:
    def export(**settings: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"samples": (X, TARGETS), "model": dense(), "progress": Silent()}
        exported = fineprune.to_onnx(given, tmp_path / "m.onnx", int8={"metric": ERROR, "ranges": "minmax", **settings}, **options)
        assert exported.int8 is not None
        return exported.int8

    facts = export()
    found = facts["accuracy"]
    assert (found["measure"], found["unit"], found["higher_is_better"], found["dense"]) == ("squared error", "mm2", False, None)
    restored = fineprune.load(given, dense())
    held_out = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:6]
    with torch.no_grad():
        error = (restored(X[held_out]) - TARGETS[held_out]).square().mean()
    assert found["float32"] == pytest.approx(float(error), rel=1e-4) and 0 < abs(found["int8"] - found["float32"]) < 0.05 * error
    assert 0 < found["relative_error"] < 0.05
    line = cost_line(facts)
    assert f"validation squared error: float32 {found['float32']:.4g} mm2, int8 " in line and "outputs differ by" in line
    drop = found["int8"] - found["float32"]
    assert export(max_drop=max(drop, 0))["kept_in_float32"] == []
    assert (export(max_drop=0)["kept_in_float32"] == []) == (drop <= 0)


def test_a_bundle_without_data_says_how_to_calibrate(given: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"names no data set; give --data \(in Python: samples\)"):
        fineprune.to_onnx(given, tmp_path / "m.onnx", int8=True, model=dense(), progress=Silent())
    with pytest.raises(UsageError, match="int8 is true, false or a table of ranges, images and max_drop, got"):
        fineprune.to_onnx(given, tmp_path / "m.onnx", int8={"metrics": ERROR}, samples=X, model=dense(), progress=Silent())  # type: ignore[dict-item]
