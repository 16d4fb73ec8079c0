"""Whole networks: what is in the file, what it computes, how large it is, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from fineprune.common.errors import RunError, UsageError
from fineprune.compressor.layers import MaskedConv2d
from fineprune.export.exporter import export_onnx
from fineprune.export.int8.quantiser import Quantiser
from fineprune.export.pack import unpack_weights
from fineprune.export.parity import check_parity
from fineprune.ops import mask_bits
from support.onnx_graphs import run_onnxruntime, run_reference
from support.tolerances import ONNX_LOGITS

INPUT_SHAPE = (3, 11, 7)
KINDS = ("", "Depthwise", "Pointwise")


@pytest.mark.parametrize("kind", ["packed", "plain", "dense"])
def test_the_file_computes_the_model_for_any_batch(kind: str, request: pytest.FixtureRequest) -> None:
    exported = request.getfixturevalue(kind)
    content = exported.path.read_bytes()
    rtol, atol = ONNX_LOGITS
    for batch in (1, 2, 5):
        x = torch.randn(batch, *INPUT_SHAPE, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = exported.model(x).numpy()
        for run in (run_onnxruntime, run_reference):
            np.testing.assert_allclose(run(content, x.numpy()), expected, rtol=rtol, atol=atol)


def test_nodes_of_the_packed_file(packed: Any) -> None:
    nodes = packed.report.nodes
    counts = {name: nodes.get(name, 0) for name in ("BatchNormalization", "Conv", *(f"fineprune::Masked{kind}Conv" for kind in KINDS))}
    assert list(counts.values()) == [0, 2, 3, 1, 0]
    assert nodes["fineprune::UnpackMask"] == 4 and nodes["Gemm"] == 1 and "Add" in nodes
    assert not {"Gather", "Range", "Expand"} & set(nodes)  # what torch makes of channels-last outputs
    assert packed.report.masked_layers == ("stem", "body", "depthwise", "shortcut")
    assert packed.report.bytes == packed.path.stat().st_size


@pytest.mark.parametrize("kind", ["plain", "dense"])
def test_standard_operators_only(kind: str, request: pytest.FixtureRequest) -> None:
    exported = request.getfixturevalue(kind)
    proto = onnx.load(exported.path)
    assert not proto.functions and [entry.domain for entry in proto.opset_import] == [""]
    assert all(node.domain == "" for node in proto.graph.node)
    assert not {"BatchNormalization", "ConstantOfShape", "TopK", "GatherElements"} & exported.report.nodes.keys()


def test_the_dense_file_is_an_ordinary_graph(dense: Any) -> None:
    assert dense.report.nodes["Conv"] == 6
    assert dense.report.masked_layers == () and dense.report.refusals == ()


def test_only_the_batch_dimension_is_dynamic(packed: Any) -> None:
    graph = onnx.load(packed.path).graph
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)]
    assert shapes == [["batch", *INPUT_SHAPE], ["batch", 5]]
    assert [value.name for value in (*graph.input, *graph.output)] == ["input", "logits"]


def test_packed_tensors_are_the_masks_and_the_folded_weights(packed: Any) -> None:
    """Another runtime can read a masked layer from its node, the two unpacking nodes and README.md's layout."""
    graph = onnx.load(packed.path).graph
    initializers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    shapes = {name: tuple(node.attribute[0].ints) for name, node in nodes.items() if name.endswith(".unpack")}
    layer, norm = packed.model.body, packed.model.body_norm
    mask = mask_bits.unpack(initializers["body.ffp_mask.bits"], shapes["body.ffp_mask.unpack"])
    assert (mask == layer.ffp_mask.numpy()).all()
    weights = unpack_weights(initializers["body.weight.values"], initializers["body.weight.bits"], shapes["body.weight.unpack"])
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    np.testing.assert_allclose(weights, layer.masked_weight().detach() * scale[:, None, None, None], rtol=1e-6)
    taps = int((weights.reshape(5, 4, 2, 9) != 0).any(1).sum(2).max())
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in nodes["body"].attribute}
    assert attributes == {"strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 5, "channels": 10, "taps": taps}
    assert list(nodes["body"].input)[1:] == ["body.weight", "body.ffp_mask", "body.bias"]


def test_metadata(packed: Any) -> None:
    proto = onnx.load(packed.path)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    assert properties["fineprune.schema"] == "1" and properties["fineprune.model"] == "tiny"
    assert json.loads(properties["fineprune.accuracy"]) == {"dense": 0.5}
    layers = {layer["name"]: layer for layer in json.loads(properties["fineprune.layers"])}
    assert set(layers) == {"stem", "body", "depthwise", "shortcut", "weights_only", "dense"}
    body = packed.model.body
    blocks, taps = body.ffp_mask.sum((1, 2)).view(5, 2), body.fwp_mask.sum((2, 3)).view(5, 4, 2).sum(1)
    assert layers["body"]["macs"] == int((blocks * taps).sum())
    assert layers["body"]["macs_dense"] == 6 * 5 * 20 * 2 * 9
    assert layers["body"]["ffp_kept"] == pytest.approx(body.ffp_mask.float().mean().item())
    assert layers["weights_only"]["ffp_kept"] == 1 and layers["stem"]["fwp_kept"] == 1
    assert list(layers["body"]) == ["name", "op", "ffp_kept", "fwp_kept", "macs_dense", "macs"]
    assert proto.producer_name == "fineprune"
    report = json.loads(json.dumps(packed.report.to_json(), allow_nan=False))
    assert report["layers"] == list(layers.values())
    assert report["masked_layers"] == list(packed.report.masked_layers) == [name for name in layers if layers[name]["ffp_kept"] < 1]


def test_no_paths_of_this_machine_in_the_file(packed: Any, dense: Any) -> None:
    for exported in (packed, dense):
        assert b".py" not in exported.path.read_bytes()


def test_the_model_is_left_as_it_was(tiny: Callable, tmp_path: Path) -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, INPUT_SHAPE, tmp_path / "network.onnx")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.body.fwp_mask is not None and not model.body._forward_hooks


def test_the_same_model_gives_the_same_bytes(tiny: Callable, packed: Any, tmp_path: Path) -> None:
    export_onnx(tiny(), INPUT_SHAPE, tmp_path / "network.onnx", metadata={"accuracy": {"dense": 0.5}, "model": "tiny"})
    assert (tmp_path / "network.onnx").read_bytes() == packed.path.read_bytes()


def test_weights_that_are_computed_stay_computed(export: Callable) -> None:
    class Centred(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight - weight.mean((1, 2, 3), keepdim=True)

    conv = MaskedConv2d.wrap(nn.Conv2d(3, 7, 3), ffp_mask=torch.eye(9, 5).bool().expand(3, 9, 5))
    torch.nn.utils.parametrize.register_parametrization(conv, "weight", Centred())
    exported = export(nn.Sequential(conv, nn.BatchNorm2d(7)).eval())
    x = torch.randn(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = exported.model(x).numpy()
    rtol, atol = ONNX_LOGITS
    for run in (run_onnxruntime, run_reference):
        np.testing.assert_allclose(run(exported.path.read_bytes(), x.numpy()), expected, rtol=rtol, atol=atol)


class Shared(nn.Module):
    """One convolution that runs twice, and one that has its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.tied = nn.Conv2d(3, 3, 3, padding=1)
        self.tied.weight = self.shared.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.relu(self.shared(torch.relu(self.shared(x))))).mean((2, 3))


def test_convolutions_of_the_same_weights_have_names_of_their_own(export: Callable) -> None:
    exported = export(Shared().eval())
    assert [layer.name for layer in exported.report.layers] == ["tied", "tied.2", "tied.3"]
    assert check_parity(exported.model, exported.path, torch.ones(1, *INPUT_SHAPE)).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvision_classifiers(name: str, export: Callable) -> None:
    from fineprune.models.zoo.registry import build

    exported = export(build(f"torchvision:{name}", seed=0).eval(), (3, 224, 224))
    samples = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    check_parity(exported.model, exported.path, samples, reference_samples=0).require()


def test_resnet20_is_really_smaller(export: Callable) -> None:
    from fineprune.models.zoo.registry import build

    model = build("resnet20", seed=0).eval()
    dense = export(model, (3, 32, 32)).report.bytes
    generator = torch.Generator().manual_seed(0)
    _mask_all(model, torch.zeros(1, 3, 32, 32), 0.63, 0.44, generator)
    pruned = export(model, (3, 32, 32)).report
    assert len(pruned.masked_layers) == len(pruned.layers)
    assert pruned.bytes < 0.65 * dense


def _mask_all(model: nn.Module, x: torch.Tensor, blocks: float, weights: float, generator: torch.Generator) -> None:
    """Random masks on every convolution of `model`."""
    sizes: dict[str, torch.Size] = {}
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    for name, conv in convs.items():
        conv.register_forward_hook(lambda module, inputs, output, name=name: sizes.update({name: output.shape[2:]}))
    model(x)
    for name, conv in convs.items():
        conv._forward_hooks.clear()
        masks = (
            torch.rand(conv.in_channels, *sizes[name], generator=generator) < blocks,
            torch.rand(conv.weight.shape, generator=generator) < weights,
        )
        model.set_submodule(name, MaskedConv2d.wrap(conv, ffp_mask=masks[0], fwp_mask=masks[1]))


def test_training_mode_is_refused(tiny: Callable, tmp_path: Path) -> None:
    model = tiny()
    model.body_norm.train()
    with pytest.raises(UsageError, match=r"module body_norm is in training mode.*call model.eval\(\)"):
        export_onnx(model, INPUT_SHAPE, tmp_path / "network.onnx")


def test_an_input_size_that_the_masks_do_not_fit_is_refused(tiny: Callable, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not accept input 3x12x7: mask of shape .* does not fit"):
        export_onnx(tiny(), (3, 12, 7), tmp_path / "network.onnx")
    with pytest.raises(UsageError, match=r"does not accept input 4x11x7: .*expected input.* to have 3 channels"):
        export_onnx(tiny(masked=False), (4, 11, 7), tmp_path / "network.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(tiny: Callable, tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.linear.weight[1, 2] = torch.nan
    with pytest.raises(RunError, match=r"weight linear\.weight is not finite"):
        export_onnx(model, INPUT_SHAPE, tmp_path / "network.onnx")


def test_a_folder_that_cannot_be_written_is_named(tiny: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write .*network\.onnx"):
        export_onnx(tiny(masked=False), INPUT_SHAPE, tmp_path / "file" / "network.onnx")


def test_bad_opset_and_metadata_are_refused_before_tracing(tiny: Callable, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="opset 17 is not supported; choose one of 18 to 23"):
        export_onnx(tiny(), INPUT_SHAPE, tmp_path / "network.onnx", opset=17)
    with pytest.raises(UsageError, match="opset 0 is not supported"):
        export_onnx(tiny(), INPUT_SHAPE, tmp_path / "network.onnx", opset=0)
    with pytest.raises(UsageError, match="metadata 'loss' cannot be stored as JSON"):
        export_onnx(tiny(), INPUT_SHAPE, tmp_path / "network.onnx", metadata={"loss": float("nan")})
    with pytest.raises(UsageError, match="metadata key 'layers' is written by the exporter"):
        export_onnx(tiny(), INPUT_SHAPE, tmp_path / "network.onnx", metadata={"layers": []})


def test_every_tensor_that_a_model_returns_is_an_output(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(INPUT_SHAPE[0], 2, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            y = self.body(x)
            return y, {"mean": y.mean((2, 3))}

    model, path = Two().eval(), tmp_path / "network.onnx"
    report = export_onnx(model, INPUT_SHAPE, path)
    assert [layer.name for layer in report.layers] == ["body"]  # as in the network, though another module calls it
    file = onnx.load(path)
    assert [port.name for port in file.graph.output] == ["logits_0", "logits_1_mean"]
    assert {tensor.name for tensor in file.graph.initializer} >= {"body.weight", "body.bias"}
    x = np.random.default_rng(0).standard_normal((3, *INPUT_SHAPE), dtype=np.float32)
    with torch.no_grad():
        y, others = model(torch.from_numpy(x))
    for one, other in zip(onnxruntime.InferenceSession(path).run(None, {"input": x}), (y, others["mean"]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    check_parity(model, path, x).require()
    with torch.no_grad():
        model.body.bias += 0.1
    assert [runtime.passed for runtime in check_parity(model, path, x).runtimes] == [False, False]


def test_models_that_return_no_tensor_or_take_two_are_refused(tmp_path: Path) -> None:
    class Words(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "logits"

    with pytest.raises(UsageError, match="the model returns str, in which no tensor is"):
        export_onnx(Words().eval(), INPUT_SHAPE, tmp_path / "network.onnx")

    class TwoInputs(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    with pytest.raises(UsageError, match=r"does not accept input 3x11x7 as its one argument: missing a required argument: 'y\'"):
        export_onnx(TwoInputs().eval(), INPUT_SHAPE, tmp_path / "network.onnx")


def test_a_forward_that_depends_on_values_is_refused(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(RunError, match="torch cannot export Branch: its forward depends on values of a tensor"):
        export_onnx(Branch().eval(), INPUT_SHAPE, tmp_path / "network.onnx")


@pytest.mark.parametrize("opset", [20, 23])
def test_newer_opsets(opset: int, tiny: Callable, export: Callable) -> None:
    exported = export(tiny(), opset=opset)
    x = torch.randn(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = exported.model(x).numpy()
    rtol, atol = ONNX_LOGITS
    np.testing.assert_allclose(run_onnxruntime(exported.path.read_bytes(), x.numpy()), expected, rtol=rtol, atol=atol)
    assert {entry.domain: entry.version for entry in onnx.load(exported.path).opset_import}[""] == opset


@pytest.mark.parametrize("plain", [True, False])
def test_int8_keeps_weights_in_integers(plain: bool, tiny: Callable, export: Callable) -> None:
    x = np.random.default_rng(0).normal(size=(16, *INPUT_SHAPE)).astype(np.float32)
    quantiser = Quantiser(samples=x)
    exported = export(tiny(), plain=plain, int8=quantiser)
    masked = {"stem", "body", "depthwise", "shortcut"}
    assert set(quantiser.layers) == {"weights_only", "dense", "linear"} | masked and set(quantiser.block_masked) == masked
    proto = onnx.load(exported.path)
    integers = [tensor.name for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    weights = [name for name in integers if name.endswith((".int8", ".values"))]
    folded = masked if plain else set()  # the functions of masked convolutions: with all that they compute of constants
    assert {name.split(".")[0] for name in weights} == set(quantiser.layers) - folded
    assert any(name.endswith(".values") for name in weights) != plain
    assert {node.domain for node in proto.graph.node} == ({""} if plain else {"", "fineprune"})
    expected = exported.model(torch.from_numpy(x)).detach().numpy()
    actual = run_onnxruntime(exported.path.read_bytes(), x)
    assert 0 < np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()
