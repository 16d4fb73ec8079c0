"""Other runtimes: those installed compute the dense network, those that are not are named."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fineprune.common.errors import RunError
from fineprune.export.peers import PEERS, Peer, installed_peers
from fineprune.export.peers.convert import convert
from fineprune.export.peers.int8 import Int8Runtime, quantise
from fineprune.export.peers.ncnn import strided_slices_as_pools
from fineprune.export.peers.openvino import OpenVinoRuntime
from fineprune.export.runtimes import OnnxRuntime
from support.onnx_graphs import run_onnxruntime
from support.tolerances import ONNX_LOGITS


@pytest.fixture(scope="module")
def samples() -> Any:
    return torch.randn(5, 3, 11, 7, generator=torch.Generator().manual_seed(0)).numpy()


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_an_installed_peer_computes_the_dense_network(peer: Peer, dense: Any, samples: Any) -> None:
    if peer.missing():
        pytest.skip(f"{peer.name} is not installed")
    expected = run_onnxruntime(dense.path.read_bytes(), samples)
    ((runtime,), lines) = installed_peers(dense.path, samples, [peer.name])
    assert lines == []
    runtime.load(1)
    actual = [runtime.run(samples), runtime.run(samples[:1])]
    runtime.close()
    rtol, atol = (0.0, 0.1 * np.ptp(expected)) if "int8" in peer.name else ONNX_LOGITS
    np.testing.assert_allclose(actual[0], expected, rtol=rtol, atol=atol)
    np.testing.assert_allclose(actual[1], expected[:1], rtol=rtol, atol=atol)
    if "int8" in peer.name:
        assert np.abs(actual[0] - expected).max() > 1e-4  # eight bits were used


def test_absent_peers_are_named(monkeypatch: pytest.MonkeyPatch, samples: Any) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in ("openvino", "pnnx", "ncnn") else found(name, *a))
    runtimes, lines = installed_peers(Path("dense.onnx"), samples, ["openvino", "ncnn", "int8", "openvino-int8"])
    assert [runtime.name for runtime in runtimes] == ["onnxruntime int8"]
    assert lines == [
        "openvino is left out: openvino not installed; pip install 'fineprune[bench]' adds it",
        "ncnn is left out: ncnn and pnnx not installed; pip install 'fineprune[bench]' adds it",
        "openvino-int8 is left out: openvino not installed; pip install 'fineprune[bench]' adds it",
    ]


class Recorded(OnnxRuntime):
    """ONNX Runtime, and the operators of the file that it is given."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self.operators = {node.op_type for node in onnx.load(path).graph.node}


def test_a_runtime_in_int8_is_given_the_file_on_grids_each_time_it_is_loaded(dense: Any, samples: Any) -> None:
    made: list[Recorded] = []
    runtime = Int8Runtime("some int8", dense.path, samples, lambda name, path: made.append(Recorded(name, path)) or made[-1])
    stock = Int8Runtime("stock", dense.path, samples)
    stock.load(1)
    for _ in range(2):
        runtime.load(1)
        assert (runtime.run(samples) == stock.run(samples)).all()
        runtime.close()
    runtime.close()
    assert [each.name for each in made] == ["some int8"] * 2
    assert all({"QuantizeLinear", "DequantizeLinear"} <= each.operators for each in made)


def test_openvino_computes_convolutions_on_grids_in_integers(dense: Any, samples: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    quantise(dense.path, tmp_path / "int8.onnx", samples)
    for path, kinds in ((dense.path, {"f32"}), (tmp_path / "int8.onnx", {"u8", "i8"})):
        runtime = OpenVinoRuntime("openvino", path)
        runtime.load(1)
        facts = [node.get_rt_info() for node in runtime._request.get_compiled_model().get_runtime_model().get_ops()]
        found = {fact["runtimePrecision"].value for fact in facts if fact["layerType"].value == "Convolution"}
        assert found and found <= kinds


def test_mnn_is_converted_without_the_module_that_reports_to_a_server(dense: Any, samples: Any) -> None:
    pytest.importorskip("MNN")
    code = (
        "import sys; from fineprune.export.peers.mnn import MnnRuntime; r = MnnRuntime('MNN', sys.argv[1]); r.load(1);"
        "print([name for name in sys.modules if 'aliyun' in name or name.startswith('MNN.tools.utils')])"
    )
    out = subprocess.run([sys.executable, "-c", code, str(dense.path)], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"  # nor does anything native print


def test_a_converter_that_fails_is_quoted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('unknown operator Erf')"]
    with pytest.raises(RunError, match="converter of ncnn wrote no network: unknown operator Erf; leave ncnn out"):
        convert("ncnn", command, tmp_path, [tmp_path / "network"])
    with pytest.raises(RunError, match="converter of ncnn did not run"):
        convert("ncnn", [tmp_path / "absent"], tmp_path, [])


@pytest.mark.parametrize(("axes", "steps", "types"), [([2, 3], [2, 3], ["MaxPool"]), ([3], [2], ["MaxPool"]), ([1], [2], ["Slice"])])
def test_strided_slices_become_pools(axes: list[int], steps: list[int], types: list[str]) -> None:
    far = [2**63 - 1] * len(axes)
    constants = {"starts": [0] * len(axes), "ends": far, "axes": axes, "steps": steps}
    initializers = [onnx.numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items()]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Slice", ["x", *constants], ["y"])], "g", [x], [y], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    content = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    expected = run_onnxruntime(model.SerializeToString(), content)
    pooled = strided_slices_as_pools(model)
    assert [node.op_type for node in pooled.graph.node] == types
    assert (run_onnxruntime(pooled.SerializeToString(), content) == expected).all()
