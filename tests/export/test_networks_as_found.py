"""Networks as people write them: what is exported all the same, and what is refused with the cause, the line of their code and a remedy."""

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fineprune.common.errors import FinepruneError, RunError, UsageError
from fineprune.export.exporter import export_onnx
from fineprune.export.parity import check_parity
from fineprune.export.runtimes import TorchRuntime

SHAPE = (3, 8, 8)
SAMPLES = np.random.default_rng(0).standard_normal((5, *SHAPE), dtype=np.float32)


class Net(nn.Module):
    """A small network with a forward of one's own."""

    def __init__(self, forward: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.conv, self.fc, self.batch_norm = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.BatchNorm2d(6, track_running_stats=False)
        self.calls, self.kept = 0, None
        self.own = forward or Net.body
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.eval()

    def body(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


class Star(Net):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.body(*inputs)


class Optional(Net):
    def forward(self, images: Tensor, mask: Tensor | None = None, *rest: Tensor, scale: float = 1.0, **more: Any) -> Tensor:
        return self.body(images if mask is None else images * mask)


class KeywordOnly(Net):
    def forward(self, *, x: Tensor) -> Tensor:
        return self.body(x)


class Two(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x + y)


def loop(net: Net, x: Tensor) -> Tensor:
    return torch.cat([net.body(one[None]) for one in x])


def added_constant(net: Net, x: Tensor) -> Tensor:
    return net.body(x) + torch.ones(2, 4)


def branch(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    if y.sum() > 0:
        y = y * 2
    return y


def median(net: Net, x: Tensor) -> Tensor:
    return net.fc(net.conv(x).flatten(2).median(2).values)


def in_place(net: Net, x: Tensor) -> Tensor:
    x -= 0.5
    return net.body(x)


def counting(net: Net, x: Tensor) -> Tensor:
    net.calls += 1
    return net.body(x) * (1 + net.calls)


def keeping(net: Net, x: Tensor) -> Tensor:
    net.kept = {"maps": [net.conv(x)]}
    return net.body(x)


def file_of(model: nn.Module, folder: Path) -> Path:
    export_onnx(model, SHAPE, folder / "n.onnx")
    return folder / "n.onnx"


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda net, x: net.body(x).view(int(x.shape[0]), 4), "takes the batch size for a constant"),
        (loop, "takes the batch size for a constant"),
        (lambda net, x: torch.cat([net.body(part) for part in x.chunk(2)]), "takes the batch size for a constant"),
        (lambda net, x: net.body(x)[torch.arange(len(x))], "takes the batch size for a constant"),
        (lambda net, x: net.body(x).view(2, 4), r"a batch of 1 ends in: shape '\[2, 4\]' is invalid"),
        (added_constant, r"a batch of 3 ends in: The size of tensor a"),
    ],
    ids=["int", "loop", "chunk", "len", "view", "added"],
)
def test_a_forward_that_fixes_the_batch_size_is_refused(forward: Callable, why: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"the graph of Net is fixed to a batch of 2: .*{why}.*write x.size"):
        file_of(Net(forward), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_holds_the_batch_size_behind_a_symbolic_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(graph: Any) -> list[Any]:
        """As if a rule had made a Reshape to [2, 4] of the last node."""
        from onnxscript import ir

        output = graph.graph.outputs[0]
        shape = ir.Value(name="two", const_value=ir.tensor(np.array([2, 4]), name="two"))
        graph.graph.register_initializer(shape)
        reshape = ir.Node("", "Reshape", [output, shape])
        reshape.outputs[0].name, output.name = output.name, "before"
        reshape.outputs[0].type, reshape.outputs[0].shape = output.type, output.shape
        graph.graph.append(reshape)
        graph.graph.outputs[0] = reshape.outputs[0]
        return []

    monkeypatch.setattr("fineprune.export.transform.SIMPLIFY", (narrow,))
    with pytest.raises(RunError, match=r"fixed to a batch of 2: ONNX Runtime cannot run .*n\.onnx on \(1, 3, 8, 8\)"):
        file_of(Net(), tmp_path)


@pytest.mark.parametrize(
    ("forward", "where"),
    [
        (lambda net, x: nn.functional.dropout(net.body(x), 0.5, training=True), "the forward of Net"),
        (lambda net, x: net.body(x + 0.1 * torch.randn_like(x)), "the forward of Net"),
        (lambda net, x: net.body(x) * float(np.random.default_rng().random()), "the forward of Net"),
        (counting, "the forward of Net"),
    ],
    ids=["dropout", "noise", "numpy", "counter"],
)
def test_outputs_that_vary_are_refused_with_the_cause(forward: Callable, where: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"^two equal calls give different outputs in eval mode, since {where},?.* draws .*self.training$"):
        file_of(Net(forward), tmp_path)
    sound = file_of(Net(), tmp_path)
    with pytest.raises(RunError, match=f"; two equal calls give different outputs in eval mode, since {where}"):
        check_parity(Net(forward), sound, SAMPLES, reference_samples=0).require()


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape)


def test_the_module_that_varies_is_named(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), Noise()), nn.Flatten()).eval()
    with pytest.raises(RunError, match=r"since 1\.1 \(Noise\) draws random numbers"):
        file_of(network, tmp_path)


def test_statistics_of_the_batch_are_named_and_exported(tmp_path: Path) -> None:
    """The file does what the network does; whoever runs it one by one is told that outputs will be others."""
    network = Net(lambda net, x: net.fc(torch.relu(net.batch_norm(net.conv(x))).mean((2, 3))))
    report = export_onnx(network, SHAPE, tmp_path / "n.onnx")
    (note,) = report.notes
    assert note.startswith("a sample's output depends on the others in its batch, since batch_norm (BatchNorm2d) mixes them: the file does")
    parity = check_parity(network, tmp_path / "n.onnx", SAMPLES)
    assert parity.passed and len(parity.runtimes) == 2


@pytest.mark.parametrize(
    ("forward", "text"),
    [
        (branch, r"its forward depends on values of a tensor \(test_networks_as_found\.py:\d+: `if y\.sum\(\) > 0:`\); use torch\.where"),
        (median, r"ONNX has no translation of aten\.median \(test_networks_as_found\.py:\d+: `return net\.fc\(net\.conv.*median"),
    ],
    ids=["branch", "operator"],
)
def test_what_cannot_be_traced_is_told_in_one_line(forward: Callable, text: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(RunError, match=f"torch cannot export Net: {text}") as caught:
        file_of(Net(forward), tmp_path)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")  # torch would print its graph


@pytest.mark.parametrize(
    "make",
    [
        Star,
        Optional,
        lambda: nn.DataParallel(Net()).eval(),
        lambda: torch.optim.swa_utils.AveragedModel(Net()).eval(),
        lambda: torch.compile(Net(), backend="eager"),
        lambda: Net(in_place),
        lambda: Net(lambda net, x: net.fc(nn.functional.adaptive_avg_pool2d(net.conv(x), 1).squeeze())),
        lambda: _used(Net(keeping)),
    ],
    ids=["star", "optional", "DataParallel", "AveragedModel", "compile", "in place", "squeeze", "kept"],
)
def test_these_are_exported(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, samples = make(), SAMPLES.copy()
    path = file_of(model, tmp_path)
    (given,) = onnx.load(path).graph.input
    assert given.name == "input" and given.type.tensor_type.shape.dim[0].dim_param == "batch"
    report = check_parity(model, path, samples)
    report.require()
    assert report.passed and (samples == SAMPLES).all()
    assert check_parity(model, path, samples[:1], engine=True).passed


def test_a_forward_that_writes_to_its_weights_is_refused(tmp_path: Path) -> None:
    """torch's exporter crashes on it, and the process with it."""
    network = Net()
    network.conv.register_forward_pre_hook(lambda layer, inputs: (layer.weight.data.clamp_(-0.1, 0.1), None)[1])
    with pytest.raises(RunError, match=r"^the forward of Net writes to conv\.weight\.data, which torch cannot export"):
        file_of(network, tmp_path)


def _used(network: Net) -> Net:
    network(torch.from_numpy(SAMPLES.copy()))  # with gradients: what it keeps has a history
    return network


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (KeywordOnly(), "as its one argument: too many positional arguments; wrap it"),
        (Two(), "as its one argument: missing a required argument: 'y'; wrap it"),
        (Net(lambda net, x: "classes"), "returns str"),
    ],
)
def test_other_kinds_of_networks_are_refused(model: nn.Module, text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=text):
        file_of(model, tmp_path)


def test_outputs_in_a_dict_keep_its_names(tmp_path: Path) -> None:
    path = file_of(Net(lambda net, x: {"scores": net.body(x)}), tmp_path)
    assert [output.name for output in onnx.load(path).graph.output] == ["scores"]


def test_torchscript_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, *SHAPE))
    for network, where in ((scripted, "the model"), (nn.Sequential(scripted), "module 0")):
        with pytest.raises(UsageError, match=f"{where} is TorchScript, whose code torch.export cannot read"):
            file_of(network.eval(), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_of_weights_become_float32_and_that_is_said(dtype: torch.dtype, tmp_path: Path) -> None:
    network = Net().to(dtype)
    report = export_onnx(network, SHAPE, tmp_path / "n.onnx")
    assert report.notes == (f"weights of {str(dtype)[6:]} are written as float32",)
    assert check_parity(network, tmp_path / "n.onnx", SAMPLES).passed
    assert network.fc.weight.dtype == dtype


def test_an_attribute_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    network = Net()
    network.conv.counter = itertools.count()
    network.conv.lock = __import__("threading").Lock()
    with warnings.catch_warnings(), pytest.raises(FinepruneError, match=r"conv\.lock"):
        warnings.simplefilter("ignore", DeprecationWarning)
        file_of(network, tmp_path)


def test_pytorch_works_on_copies_and_its_answers_stay() -> None:
    """A network that changes its input, and one that answers with a tensor it fills again."""
    samples = SAMPLES.copy()
    runtime = TorchRuntime("torch", Net(in_place))
    assert (runtime.run(samples) == runtime.run(samples)).all() and (samples == SAMPLES).all()
    kept = torch.zeros(5, 4)
    runtime = TorchRuntime("torch", Net(lambda net, x: kept.copy_(net.body(x))))
    first = runtime.run(samples)
    assert np.abs(runtime.run(samples + 1) - first).max() > 1e-3


def test_metadata_of_any_characters_comes_back(tmp_path: Path) -> None:
    metadata = {"klasse": ["Käse", "猫", "a\x1b[31m\0", "\N{CHEESE WEDGE}" * 5000], "leer ": ""}
    export_onnx(Net(), SHAPE, tmp_path / "n.onnx", metadata=metadata)
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "n.onnx").metadata_props}
    assert __import__("json").loads(properties["fineprune.klasse"]) == metadata["klasse"] and properties["fineprune.leer "] == ""
    for broken in ({"path": "a\udcff.npz"}, {"a\udcff": 1}):
        with pytest.raises(UsageError, match=r"metadata '.*udcff.*' cannot be stored|metadata 'path' cannot be stored"):
            export_onnx(Net(), SHAPE, tmp_path / "n.onnx", metadata=broken)
