"""Parity: sound files pass, wrong ones fail, and what cannot be compared is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fineprune.common.errors import RunError, UsageError
from fineprune.export.parity import TOLERANCES, _compare, _compare_one, check_parity
from fineprune.export.runtimes import OnnxRuntime
from support.fakes import Recorder

SAMPLES = np.random.default_rng(0).standard_normal((40, 3, 11, 7), dtype=np.float32)


@pytest.mark.parametrize("kind", ["packed", "plain", "dense"])
def test_a_sound_export_passes(kind: str, request: pytest.FixtureRequest) -> None:
    exported = request.getfixturevalue(kind)
    report = check_parity(exported.model, exported.path, SAMPLES, reference_samples=3)
    assert report.passed and report.max_abs_error < 1e-4
    report.require()
    assert [(r.runtime, r.samples, r.argmax_agreement) for r in report.runtimes] == [("onnxruntime", 40, 1.0), ("onnx.reference", 3, 1.0)]
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["passed"] is True


def test_the_file_of_another_model_fails(tiny: Callable, dense: Any) -> None:
    report = check_parity(tiny(), dense.path, SAMPLES, reference_samples=0)
    (runtime,) = report.runtimes
    assert not report.passed and runtime.relative_error > 100 * TOLERANCES["float32"]
    assert runtime.relative_error == pytest.approx(runtime.max_abs_error / _largest_logit(tiny()))
    with pytest.raises(RunError, match=r"differs from the model in onnxruntime by .* of its largest logit"):
        report.require()


def test_the_engine_is_compared_and_only_warned_of(tiny: Callable, packed: Any, dense: Any) -> None:
    """A file that is right elsewhere stays usable; where the engine differs, the user is told."""
    report = check_parity(packed.model, packed.path, SAMPLES, reference_samples=0, engine=True)
    assert [r.runtime for r in report.runtimes] == ["onnxruntime", "engine"]
    wrong = check_parity(tiny(), dense.path, SAMPLES, reference_samples=0, engine=True)
    assert "differs from the model in engine by" in wrong.engine_warning()
    engine_alone = replace(report, runtimes=(report.runtimes[0], wrong.runtimes[1]))
    engine_alone.require()
    assert not engine_alone.passed and "run the file in ONNX Runtime" in engine_alone.engine_warning()
    assert replace(report, runtimes=report.runtimes[:1]).engine_warning() == ""


def test_a_reference_that_fails_is_said_and_stops_nothing(packed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise TypeError("'int' object is not subscriptable\nin GridSample")

    monkeypatch.setattr("onnx.reference.ReferenceEvaluator.run", fail)
    progress = Recorder()
    report = check_parity(packed.model, packed.path, SAMPLES, progress=progress)
    assert report.passed and [r.runtime for r in report.runtimes] == ["onnxruntime"]
    (line,) = progress.lines
    assert line.startswith("onnx.reference is not compared: onnx.reference cannot run ") and line.endswith(
        "'int' object is not subscriptable"
    )


def test_a_reference_that_differs_alone_is_only_warned_of(packed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch and ONNX Runtime agree: two against one, and ONNX Runtime is what runs files."""
    monkeypatch.setattr("fineprune.export.runtimes.OnnxReference.outputs", lambda runtime, x: [np.ones((len(x), 5))])
    report = check_parity(packed.model, packed.path, SAMPLES)
    report.require()
    assert not report.passed and "differs from the model in onnx.reference by" in report.reference_warning()
    assert "though ONNX Runtime agrees" in report.reference_warning()


def test_the_batches_of_large_images_are_small(monkeypatch: pytest.MonkeyPatch, packed: Any) -> None:
    sizes: list[int] = []
    outputs = OnnxRuntime.outputs
    monkeypatch.setattr(OnnxRuntime, "outputs", lambda runtime, x: [sizes.append(len(x)), outputs(runtime, x)][1])
    monkeypatch.setattr("fineprune.export.parity.BATCH_VALUES", 7 * SAMPLES[0].size + 1)
    assert check_parity(packed.model, packed.path, SAMPLES, reference_samples=0).passed
    assert sizes == [7, 7, 7, 7, 7, 5]


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 2, 2)])
def test_any_shape_of_outputs_is_compared(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape)
    assert _compare_one("a", values, values).argmax_agreement == 1
    assert _compare_one("a", -values, values).argmax_agreement < 1


def test_of_several_outputs_the_one_that_differs_most_counts() -> None:
    """However small its numbers are beside those of the others."""
    large, small = np.full((2, 3), 1e4, np.float32), np.full((2, 2), 1e-3, np.float32)
    assert _compare("a", [large, small], [large, small]).passed
    wrong = _compare("a", [large, 1.01 * small], [large, small])
    assert not wrong.passed and wrong.relative_error == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(RunError, match="a gave 1 outputs, PyTorch 2; the file belongs to another model"):
        _compare("a", [large], [large, small])


@pytest.mark.parametrize(("dtype", "near_enough"), [("float32", True), ("float64", True), ("int32", False), ("int8", False)])
def test_whole_numbers_are_equal_or_wrong(dtype: str, near_enough: bool) -> None:
    expected = np.full((2, 3), min(100_000, 127 if dtype == "int8" else 100_000), dtype)
    actual = expected.copy()
    actual[1, 2] -= 1
    assert _compare_one("a", actual, expected).passed == near_enough
    assert _compare_one("a", expected, expected).passed


def _largest_logit(model: nn.Module) -> float:
    with torch.no_grad():
        return model(torch.from_numpy(SAMPLES)).abs().max().item()


def test_one_dropped_block_fails(tiny: Callable, packed: Any) -> None:
    model = tiny()
    model.stem.ffp_mask[tuple(model.stem.ffp_mask.nonzero()[5].tolist())] = False
    assert not check_parity(model, packed.path, SAMPLES, reference_samples=0).passed


def test_logits_that_are_not_finite_are_refused(packed: Any) -> None:
    with pytest.raises(RunError, match="torch gave logits that are not finite"):
        check_parity(packed.model, packed.path, np.full_like(SAMPLES, np.inf))


def test_bad_arguments(tiny: Callable, packed: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"samples of shape \[N,C,H,W\] with N > 0, got \(0, 3, 11, 7\)"):
        check_parity(packed.model, packed.path, SAMPLES[:0])
    with pytest.raises(UsageError, match=r"no ONNX file at .*absent\.onnx"):
        check_parity(packed.model, tmp_path / "absent.onnx", SAMPLES)
    with pytest.raises(UsageError, match=r"no provider MagicProvider here; available: .*CPUExecutionProvider"):
        check_parity(packed.model, packed.path, SAMPLES, providers=["MagicProvider"])
    with pytest.raises(UsageError, match="the model is in training mode"):
        check_parity(tiny().train(), packed.path, SAMPLES)


def test_a_truncated_file_is_named(packed: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(packed.path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"ONNX Runtime cannot load .*broken\.onnx"):
        check_parity(packed.model, broken, SAMPLES)


def test_a_wrong_input_size_is_named(packed: Any) -> None:
    runtime = OnnxRuntime("onnxruntime", packed.path)
    runtime.load(1)
    with pytest.raises(RunError, match=r"cannot run .*network.onnx on \(1, 3, 8, 8\)"):
        runtime.run(np.zeros((1, 3, 8, 8), np.float32))
