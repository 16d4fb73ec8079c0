"""Networks from ONNX files: each operator against ONNX Runtime, files of exporters, and what is refused."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fineprune.common.errors import FinepruneError, UsageError
from fineprune.models import onnx_file
from fineprune.models.onnx_file.network import OnnxNetwork
from fineprune.models.onnx_file.ops import HANDLERS
from support.onnx_networks import EXPORTERS, exits, exported, graph, saved, tokens
from support.tolerances import ONNX_LOGITS


def opened(path: Path, shape: Sequence[int] = (3, 6, 8)) -> tuple[OnnxNetwork, Any]:
    """The network of a file, compared with it, and its graph."""
    return onnx_file.opened(path, onnx_file.sized(onnx_file.read(path), shape))


def node(kind: str, *inputs: str, out: Sequence[str] = ("y",), **attributes: Any) -> Any:
    return helper.make_node(kind, ["x", *inputs], list(out), **attributes)


def f(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


W, SCALES = f(4, 3, 3, 2), {"s": f(3), "b": f(3), "m": f(3), "v": np.abs(f(3)) + 0.5}
CASES: dict[str, tuple[list[Any], dict[str, Any], int]] = {
    "conv with uneven pads": ([node("Conv", "w", pads=[2, 0, 1, 1], strides=[2, 1])], {"w": W}, 18),
    "conv same upper": ([node("Conv", "w", "b", auto_pad="SAME_UPPER", strides=[1, 3])], {"w": W, "b": f(4)}, 18),
    "conv same lower": ([node("Conv", "w", auto_pad="SAME_LOWER")], {"w": W}, 18),
    "conv dilated in groups": ([node("Conv", "w", group=3, dilations=[2, 3])], {"w": f(6, 1, 2, 2)}, 18),
    "conv transposed": (
        [node("ConvTranspose", "w", "b", strides=[2, 3], pads=[1, 0, 1, 0], output_padding=[1, 0])],
        {"w": f(3, 2, 3, 2), "b": f(2)},
        18,
    ),
    "batchnorm": ([node("BatchNormalization", "s", "b", "m", "v", epsilon=1e-3)], SCALES, 15),
    "layernorm": ([node("LayerNormalization", "s", "b", axis=-1)], {"s": f(8), "b": f(8)}, 18),
    "instancenorm": ([node("InstanceNormalization", "s", "b")], {k: SCALES[k] for k in "sb"}, 18),
    "prelu": ([node("PRelu", "s")], {"s": f(3, 1, 1)}, 18),
    "lrn": ([node("LRN", size=3, alpha=0.1, beta=0.5, bias=1.5)], {}, 18),
    "max pool uneven": ([node("MaxPool", kernel_shape=[3, 2], pads=[1, 0, 0, 1], strides=[2, 1])], {}, 18),
    "max pool up": ([node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], {}, 18),
    "mean pool without pads": ([node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}, 18),
    "mean pool with pads": ([node("AveragePool", kernel_shape=[3, 2], pads=[1, 0, 0, 1], count_include_pad=1)], {}, 18),
    "global max": ([node("GlobalMaxPool")], {}, 18),
    "linear": (
        [
            node("GlobalAveragePool", out=["p"]),
            helper.make_node("Flatten", ["p"], ["q"]),
            helper.make_node("Gemm", ["q", "w", "b"], ["y"], transB=1, alpha=0.5, beta=2.0),
        ],
        {"w": f(5, 3), "b": f(5)},
        18,
    ),
    "matmul of a constant": ([node("MatMul", "w")], {"w": f(8, 5)}, 18),
    "constant times values": ([helper.make_node("MatMul", ["w", "x"], ["y"])], {"w": f(4, 6)}, 18),
    "clip by attributes": ([node("Clip", min=-0.2, max=0.7)], {}, 7),
    "clip by inputs": ([node("Clip", "", "high")], {"high": np.float32(0.3)}, 18),
    "relu6": ([node("Clip", "low", "high")], {"low": np.float32(0), "high": np.float32(6)}, 18),
    "dropout": ([node("Dropout", "r", out=["y", "mask"])], {"r": np.float32(0.3)}, 18),
    "choices and remainders": (
        [
            node("Less", "low", out=["l"]),
            node("Greater", "high", out=["g"]),
            helper.make_node("Or", ["l", "g"], ["o"]),
            helper.make_node("Not", ["o"], ["n"]),
            node("Equal", "x", out=["e"]),
            helper.make_node("And", ["n", "e"], ["a"]),
            node("Mod", "d", out=["m"], fmod=1),
            helper.make_node("Where", ["a", "m", "x"], ["y"]),
        ],
        {"low": np.float32(-1), "high": np.float32(1.2), "d": np.float32(0.4)},
        18,
    ),
    "hard sigmoid": ([node("HardSigmoid", alpha=0.3, beta=0.4)], {}, 18),
    "several": ([helper.make_node("Sum", ["x", "w", "x"], ["y"])], {"w": f(3, 1, 1)}, 18),
    "softmax": ([node("Softmax", axis=1)], {}, 18),
    "flat softmax": ([node("Softmax", axis=1)], {}, 11),
    "mean by attribute": ([node("ReduceMean", axes=[2, 3], keepdims=0)], {}, 13),
    "maximum by input": ([node("ReduceMax", "a")], {"a": ints(-1)}, 18),
    "pad edges": ([node("Pad", "p", mode="edge")], {"p": ints(0, 0, 1, 0, 0, 0, 2, 3)}, 18),
    "pad a number": ([node("Pad", "p", "c")], {"p": ints(0, 1, 0, 2, 0, 0, 1, 0), "c": np.float32(2)}, 18),
    "slice": ([node("Slice", "s", "e", "a", "t")], {"s": ints(1, -5), "e": ints(2**62, -1), "a": ints(1, 3), "t": ints(1, 2)}, 18),
    "gather one": ([node("Gather", "i", axis=1)], {"i": np.int64(-1)}, 18),
    "gather a table": ([node("Gather", "i", axis=2)], {"i": np.array([[0, 5], [2, -1]])}, 18),
    "split and put together": (
        [node("Split", "p", out=["a", "b"], axis=1), helper.make_node("Concat", ["b", "a"], ["y"], axis=1)],
        {"p": ints(1, 2)},
        18,
    ),
    "squeeze": ([node("GlobalAveragePool", out=["p"]), helper.make_node("Squeeze", ["p", "a"], ["y"])], {"a": ints(-1, 2)}, 18),
    "unsqueeze": ([node("Unsqueeze", "a")], {"a": ints(1, -1)}, 18),
    "reshape": ([node("Reshape", "s")], {"s": ints(0, -1, 4)}, 18),
    "depth first": (
        [node("Concat", "x", "x", "x", out=["p"], axis=1), helper.make_node("DepthToSpace", ["p"], ["y"], blocksize=2)],
        {},
        18,
    ),
    "resize nearest": (
        [node("Resize", "", "s", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"s": np.array([1, 1, 2, 3], np.float32)},
        18,
    ),
    "resize linear": ([node("Resize", "", "", "z", mode="linear")], {"z": ints(2, 3, 9, 5)}, 18),
    "upsample": ([node("Upsample", "s", mode="nearest")], {"s": np.array([1, 1, 2, 2], np.float32)}, 9),
    "sizes computed": (
        [
            node("Shape", out=["a"]),
            helper.make_node("Gather", ["a", "zero"], ["n"]),
            helper.make_node("Unsqueeze", ["n", "first"], ["m"]),
            helper.make_node("Concat", ["m", "rest"], ["s"], axis=0),
            node("Reshape", "s"),
        ],
        {"zero": np.int64(0), "first": ints(0), "rest": ints(-1)},
        18,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_operators_compute_what_onnx_runtime_does(case: str, tmp_path: Path) -> None:
    nodes, tensors, opset = CASES[case]
    shape = (2, 3, 6, 8) if case == "resize linear" else ("n", 3, 6, 8)
    path = saved(graph(nodes, tensors, opset=opset, shape=shape), tmp_path / "net.onnx")
    network, _ = opened(path)
    x = f(2, 3, 6, 8, seed=1)
    [expected] = onnxruntime.InferenceSession(path).run(None, {"x": x})
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), expected, *ONNX_LOGITS)
    used = {kind.op_type for kind in onnx.load(path).graph.node}
    assert used <= HANDLERS.keys()


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_exported_network_is_the_one_it_was(exporter: str, tmp_path: Path) -> None:
    model = exits()
    before = torch.random.get_rng_state()
    network, _ = opened(exported(model, tmp_path / "net.onnx", (3, 10, 14), exporter), (3, 10, 14))
    if exporter == "dynamo":
        assert torch.equal(torch.random.get_rng_state(), before), "nothing random is drawn"
    x = torch.from_numpy(f(3, 3, 10, 14))
    with torch.no_grad():
        np.testing.assert_allclose(network(x).numpy(), model(x).numpy(), *ONNX_LOGITS)
    named = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)} == named
    assert isinstance(network.norm, nn.BatchNorm2d) and isinstance(network.head, nn.Linear)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_transformer_takes_any_number_of_samples_whatever_the_file_says(exporter: str, tmp_path: Path) -> None:
    """Its batch goes along the second axis and through the heads; the bundle's graph says that it is read for one sample."""
    model = tokens()
    network, read = opened(exported(model, tmp_path / "net.onnx", (3, 8, 12), exporter, oldest=17), (3, 8, 12))
    again = onnx_file.build(onnx_file.parse(onnx_file.architecture(read)))
    again.load_state_dict(network.state_dict())
    for count in (1, 2, 5):
        x = torch.from_numpy(f(count, 3, 8, 12))
        with torch.no_grad():
            np.testing.assert_allclose(network(x).numpy(), model(x).numpy(), *ONNX_LOGITS)
            assert torch.equal(again(x), network(x))
    found = [type(module) for _, module in network.named_modules() if next(module.parameters(recurse=False), None) is not None]
    assert sorted(kind.__name__ for kind in found) == ["Conv2d", "LayerNorm", "Linear", "Linear", "Linear"]
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x[:3]), network(x[:3]))


ALONE: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "transposed": ([node("Transpose", out=["t"], perm=[3, 0, 1, 2])], {}),
    "rows joined": (
        [
            node("Reshape", "s", out=["r"]),
            helper.make_node("Concat", ["r", "c", "r"], ["t"], axis=0),
        ],
        {"s": ints(6, 24), "c": f(2, 24)},
    ),
    "a constant beside rows": (
        [node("Reshape", "s", out=["r"]), helper.make_node("Concat", ["r", "c"], ["t"], axis=1)],
        {"s": ints(6, 24), "c": f(6, 2)},
    ),
    "rows chosen": (
        [node("Reshape", "s", out=["r"]), helper.make_node("Gather", ["r", "g"], ["t"], axis=0)],
        {"s": ints(6, 24), "g": ints(4, 1)},
    ),
    "rows of different number": (
        [
            node("Reshape", "s", out=["r"]),
            helper.make_node("ReduceMean", ["r"], ["m"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["r", "m"], ["t"]),
        ],
        {"s": ints(6, 24)},
    ),
    "a row for each constant": (
        [node("Reshape", "s", out=["r"]), helper.make_node("Mul", ["r", "c"], ["t"])],
        {"s": ints(6, 24), "c": f(6, 1)},
    ),
}


@pytest.mark.parametrize("case", ALONE)
def test_graphs_for_one_sample_are_mapped_over_samples(case: str, tmp_path: Path) -> None:
    nodes, tensors = ALONE[case]
    nodes = [*nodes, helper.make_node("Reshape", ["t", "end"], ["y"])]
    path = saved(graph(nodes, {**tensors, "end": ints(1, -1)}, shape=(1, 3, 6, 8), opset=13), tmp_path / "net.onnx")
    network, read = opened(path)
    assert onnx_file.file.is_single(read)
    x = f(3, 3, 6, 8, seed=1)
    session = onnxruntime.InferenceSession(path)
    expected = np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(3)])
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), expected, *ONNX_LOGITS)
    torch.export.export(network, (torch.from_numpy(x),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))


def test_the_architecture_has_no_weights_and_gives_the_network_back(tmp_path: Path) -> None:
    network, model = opened(exported(exits(), tmp_path / "net.onnx", (3, 10, 14)), (3, 10, 14))
    bare = onnx_file.architecture(model)
    assert len(bare) < 0.7 * (tmp_path / "net.onnx").stat().st_size
    again = onnx_file.build(onnx_file.parse(bare))
    assert not again.get_parameter("grouped.weight").any()
    again.load_state_dict(network.state_dict())
    x = torch.from_numpy(f(2, 3, 10, 14))
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    assert onnx_file.elements(bare) == onnx_file.elements(model.SerializeToString()) >= sum(p.numel() for p in network.parameters())


def test_a_layer_that_is_called_twice_is_one_layer(tmp_path: Path) -> None:
    twice = [node("Conv", "w", out=["a"]), helper.make_node("Conv", ["a", "w"], ["y"])]
    network, _ = opened(saved(graph(twice, {"w": f(3, 3, 1, 1)}), tmp_path / "net.onnx"))
    assert len([module for module in network.modules() if isinstance(module, nn.Conv2d)]) == 1
    other = [node("Conv", "w", out=["a"]), helper.make_node("Conv", ["a", "w"], ["y"], pads=[1, 1, 1, 1])]
    network, _ = opened(saved(graph(other, {"w": f(3, 3, 1, 1)}), tmp_path / "net.onnx"))
    first, second = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.data_ptr() != second.weight.data_ptr(), "each trains its own"


def test_names_that_torch_does_not_take(tmp_path: Path) -> None:
    names = ["forward.weight", "a.weight", "a.b.weight", "steps/1:0", "training.x-y.weight", "..weight"]
    nodes = [helper.make_node("Conv", [f"v{i}" if i else "x", name], [f"v{i + 1}"]) for i, name in enumerate(names)]
    nodes[-1].output[0] = "y"
    network, _ = opened(saved(graph(nodes, {name: f(3, 3, 1, 1, seed=i) for i, name in enumerate(names)}), tmp_path / "net.onnx"))
    found = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert found == ["forward_", "a", "a_.b", "conv_4", "training_.x_y", "unnamed"]


def test_values_are_let_go_after_their_last_use(tmp_path: Path) -> None:
    chain = [helper.make_node("Relu", [f"v{i}" if i else "x"], [f"v{i + 1}" if i < 5 else "y"]) for i in range(6)]
    network, _ = opened(saved(graph(chain), tmp_path / "net.onnx"))
    assert [step.last for step in network._steps] == [(0,), (1,), (2,), (3,), (4,), (5,)]


def test_a_wrong_reading_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(graph([node("Sigmoid")]), tmp_path / "net.onnx")
    monkeypatch.setitem(HANDLERS, "Sigmoid", lambda b, n: b.call(torch.tanh, n[0]))
    with pytest.raises(UsageError, match=r"net\.onnx was read wrongly: outputs differ from ONNX Runtime's by \d"):
        opened(path)


QUANTISE = [node("QuantizeLinear", "s", out=["q"]), helper.make_node("DequantizeLinear", ["q", "s"], ["y"])]
REFUSED: dict[str, tuple[Any, str]] = {
    "an unknown operator": (
        graph([node("Einsum", equation="nchw->nc"), node("Hardmax", out=["z"])]),
        "net.onnx has the operators Einsum, Hardmax, which cannot",
    ),
    "integers": (graph(QUANTISE, {"s": np.float32(0.1)}), r"is quantised \(QuantizeLinear\); give the float32 file"),
    "half": (graph([node("Relu")], kind=TensorProto.FLOAT16), "takes inputs that are not float32"),
    "channels last": (graph([node("Relu")], shape=(1, 224, 224, 3)), r"channels last, \[N,H,W,C\]; export it as \[N,C,H,W\]"),
    "vectors": (graph([node("Relu")], shape=("n", 9)), "takes inputs of 2 dimensions, not images"),
    "an old opset": (graph([node("Relu")], opset=6), "is of opset 6, older than 7"),
    "a moving weight": (graph([helper.make_node("Conv", ["x", "x"], ["y"])]), "the node Conv 'y': its input 1 depends on the images"),
    "a second output": (
        graph([node("MaxPool", out=["p", "i"], kernel_shape=[2, 2]), helper.make_node("Cast", ["i"], ["y"], to=1)]),
        "the node Cast 'y': it reads 'i', which no node before it computes, or one whose further outputs cannot be read",
    ),
    "training": (
        graph([node("BatchNormalization", *"sbmv", training_mode=1)], SCALES, opset=15),
        "it is in training mode; export the network in eval mode",
    ),
    "backwards": (graph([node("Slice", *"seat")], {"s": ints(-1), "e": ints(-9), "a": ints(3), "t": ints(-1)}), r"its steps are \[-1\]"),
    "a wrong shape": (graph([node("Reshape", "s")], {"s": ints(0, 7, 7)}), "the node Reshape 'y' cannot be read: shape"),
    "no image": (graph([node("Shape", out=["y"])]), "its output does not depend on the images"),
    "a fixed batch of several": (
        graph(
            [node("Reshape", "s", out=["r"]), helper.make_node("Transpose", ["r"], ["t"]), helper.make_node("Reshape", ["t", "e"], ["y"])],
            {"s": ints(6, 48), "e": ints(2, -1)},
            shape=(2, 3, 6, 8),
        ),
        r"holds the size of a batch in its graph.*; export it for one sample or for any number of them \(dynamic_axes",
    ),
    "several rows of a sample": (
        graph([node("Reshape", "s")], {"s": ints(6, 24)}, shape=(1, 3, 6, 8)),
        r"gives 18 rows for 3 samples; export it with an output \[N,...\]",
    ),
    "one number of a sample": (
        graph([node("ReduceSum", out=["r"], keepdims=0), helper.make_node("Add", ["x", "r"], ["y"])], shape=(1, 3, 6, 8)),
        "it reads a single number of a sample",
    ),
    "too large": (graph([node("Pad", "p")], {"p": ints(0, 0, 2**20, 0, 0, 0, 0, 2**20)}), "it makes a value of 1x3x1048582x1048584"),
    "much too large": (graph([node("Expand", "s")], {"s": ints(2**40, 1, 1, 1, 1)}), "it makes a value of 1099511627776x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_network_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    model, text = REFUSED[case]
    path = saved(model, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=text) as raised:
        opened(path, (3, 6, 8))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_several_inputs_or_outputs_are_refused(tmp_path: Path) -> None:
    model = graph([node("Relu")])
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    with pytest.raises(UsageError, match=r"has 2 inputs \(x, z\), not one; cut the file"):
        onnx_file.read(saved(model, tmp_path / "net.onnx"))
    model = graph([node("Conv", "w")], {"w": W})
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    assert isinstance(opened(saved(model, tmp_path / "net.onnx"))[0], OnnxNetwork), "older files name their weights among the inputs"


@pytest.mark.parametrize("content", [b"", b"ab" * 50, b"\x08\x08"], ids=["nothing", "noise", "a header"])
def test_files_that_are_no_graph(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(FinepruneError, match=re.escape(f"{tmp_path}/net.onnx cannot be read as ONNX (")):
        onnx_file.read(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="there is no file"):
        onnx_file.read(tmp_path / "other.onnx")
