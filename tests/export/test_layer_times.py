"""Per-layer times: every convolution is found in both runtimes, and figures follow from the times."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fineprune.common.errors import RunError
from fineprune.export.functions import MASKED_CONVS
from fineprune.export.int8.quantiser import Quantiser
from fineprune.export.layer_times import LayerTime, _typical, layer_times, layer_times_of, summary, why, why_int8

FACTS = {"macs": 50, "macs_dense": 100, "op": "MaskedConv"}


def row(**changes: Any) -> LayerTime:
    values: dict[str, Any] = {
        "kept": 0.5,
        "dense_us": 40.0,
        "single_us": 44.0,
        "engine_us": 25.0,
        "expected_us": 24.0,
        "speedup": 1.6,
        "fraction": 0.8,
    }
    values |= {"name": "layer", "shape": "16->16 3x3 32x32", "single_fraction": 0.88, "kernel": "filters", "reason": ""}
    return LayerTime(**(values | changes))


def test_every_convolution_of_both_files_is_timed(packed: Any, dense: Any) -> None:
    x = torch.randn(1, 3, 11, 7, generator=torch.Generator().manual_seed(0)).numpy()
    rows = layer_times(dense.path, packed.path, x, rounds=2)
    assert {r.name for r in rows} == {"stem", "body", "depthwise", "shortcut", "weights_only", "dense"}
    facts = {layer.name: layer for layer in packed.report.layers}
    for r in rows:
        assert r.kept == pytest.approx(facts[r.name].macs / facts[r.name].macs_dense)
        assert r.dense_us > 0 and r.single_us > 0 and r.engine_us > 0
    by_name = {r.name: r for r in rows}
    assert by_name["body"].shape == "10->20 3x3 6x5" and by_name["stem"].shape == "3->10 3x2 11x10"


def test_files_take_turns_beside_the_same_dense_runs(packed: Any, dense: Any) -> None:
    x = torch.randn(1, 3, 11, 7, generator=torch.Generator().manual_seed(0)).numpy()
    found = layer_times_of(dense.path, {"masked": packed.path, "dense": dense.path}, x, rounds=1)
    assert [len(rows) for rows in found.values()] == [6, 6]
    for masked, whole in zip(found["masked"], found["dense"], strict=True):
        assert (masked.name, masked.dense_us, masked.single_us) == (whole.name, whole.dense_us, whole.single_us)
        assert masked.kept < whole.kept == 1 or masked.name == "dense"


def test_layers_in_int8_stand_beside_those_of_onnx_runtime(tiny: Any, export: Any, dense: Any) -> None:
    x = torch.randn(2, 3, 11, 7, generator=torch.Generator().manual_seed(0)).numpy()
    int8 = export(tiny(), int8=Quantiser(samples=x))
    rows = {r.name: r for r in layer_times(dense.path, int8.path, x[:1], rounds=1)}
    blocks = {layer.name for layer in int8.report.layers if layer.op in MASKED_CONVS}
    assert blocks and all(rows[name].int8_us is None and rows[name].reason == "in float32: block masks" for name in blocks)
    others = [r for name, r in rows.items() if name not in blocks]
    assert others and all(r.int8_us is not None and r.int8_us > 0 and r.kernel.startswith("quad") for r in others)


def test_a_reason_is_given_where_a_layer_in_int8_falls_short() -> None:
    slow = row(kernel="quad_positions", int8_us=30.0)  # half of 30 us is wanted, 25 are taken
    assert why_int8(slow, FACTS, "few zeros") == "few zeros" and why_int8(slow, FACTS, "") == ""
    assert why_int8(row(kernel="quad_positions", int8_us=60.0), FACTS, "few zeros") == ""
    assert why_int8(row(kernel="quad_positions", int8_us=5.0, engine_us=3.0, kept=1.0), {**FACTS, "macs": 100}, "") == ""
    small = row(kernel="quad_positions", int8_us=2.0, engine_us=3.0, kept=1.0)
    assert why_int8(small, {**FACTS, "macs": 100}, "") == "drops nothing; under 6 us: fixed cost of a layer"
    assert why_int8(row(int8_us=30.0), FACTS, "") == "in float32: what surrounds it has no form in integers here"
    assert why_int8(row(), {**FACTS, "op": "Conv"}, "") == "in float32: so it is in the file"
    assert why_int8(row(kernel="onnxruntime", reason="not in the engine"), FACTS, "") == "not in the engine"


def test_whole_microseconds_are_averaged_and_lost_cores_left_out() -> None:
    assert _typical(np.array([13, 14, 13, 13, 14, 80])) == pytest.approx(13.4)
    assert _typical(np.array([300.0, 310, 290, 900])) == pytest.approx(300)
    assert _typical(np.array([13, 70])) == 13


def test_a_file_of_another_exporter_is_refused(dense: Any, tmp_path: Path) -> None:
    model = onnx.load(dense.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(RunError, match="says nothing about its layers; export it with fineprune"):
        layer_times(dense.path, tmp_path / "other.onnx", np.zeros((1, 3, 11, 7), np.float32))


def test_edited_facts_of_layers_are_named(dense: Any, tmp_path: Path) -> None:
    model = onnx.load(dense.path)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "fineprune.layers")
    for text, fault in (
        (entry.value[:-1], "fineprune.layers is not valid JSON"),
        (entry.value.replace('"macs"', '"mac"', 1), r"fineprune\.layers: \[0\]\.macs is missing"),
    ):
        entry.value = text
        onnx.save(model, tmp_path / "edited.onnx")
        with pytest.raises(RunError, match=f"{fault}.*; it was edited, export it again"):
            layer_times(dense.path, tmp_path / "edited.onnx", np.zeros((1, 3, 16, 16), np.float32))


def test_a_reason_is_given_where_a_layer_falls_short() -> None:
    assert why(row(fraction=0.9, reason="only kernel"), FACTS) == ""
    assert why(row(reason="only kernel"), FACTS) == "chosen from only kernel; block masks: positions gathered one by one"
    assert why(row(kernel="positions"), FACTS) == "weights differ by filter: a load for a multiply-add"
    assert why(row(engine_us=3.0), FACTS).startswith("under 6 us")
    assert why(row(), {**FACTS, "macs": 100}) == "drops nothing"
    assert why(row(kernel="onnxruntime", fraction=np.nan, reason="not in the engine"), FACTS) == "not in the engine"


def test_what_is_not_known_of_a_layer_is_none_in_json() -> None:
    found = row(engine_us=np.nan, expected_us=None, speedup=np.nan, fraction=np.nan, single_fraction=np.nan).to_json()
    assert [name for name, value in found.items() if value is None] == [
        "int8_us",
        "engine_us",
        "expected_us",
        "speedup",
        "fraction",
        "single_fraction",
    ]


def test_the_summary_weighs_layers_by_their_time() -> None:
    rows = [row(), row(dense_us=100.0, engine_us=100.0, fraction=0.5), row(fraction=np.nan, engine_us=np.nan)]
    found = summary(rows)
    assert found["layers"] == 2 and found["least_fraction"] == 0.5
    assert found["median_fraction"] == pytest.approx(0.65)
    assert found["whole_fraction"] == pytest.approx((20 + 50) / 125)
    assert summary([]) == {}
