"""Zeros before a pool of maxima."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fineprune.export.engine import Session
from fineprune.export.exporter import export_onnx
from support.onnx_graphs import run_onnxruntime, run_reference


@pytest.mark.parametrize("value", [0.0, -0.5, float("-inf")])
def test_padding_before_a_pool_of_negative_numbers_takes_part_in_the_maximum(value: float, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConstantPad2d(1, value), nn.MaxPool2d(3, 2)).eval()
    with torch.no_grad():
        model[0].bias.fill_(-5.0)  # type: ignore[union-attr]
    export_onnx(model, (3, 8, 8), tmp_path / "net.onnx")
    content, x = (tmp_path / "net.onnx").read_bytes(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = model(x).detach().numpy()
    assert ("Clip" in [node.op_type for node in onnx.load_from_string(content).graph.node]) == (value > float("-inf"))
    for run in (run_onnxruntime, run_reference):
        np.testing.assert_allclose(run(content, x.numpy()), expected, rtol=1e-5)
    np.testing.assert_allclose(Session(tmp_path / "net.onnx").run(None, {"input": x.numpy()})[0], expected, rtol=1e-5)
