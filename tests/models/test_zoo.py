"""The zoo: every network builds, counts as the thesis says, and refuses what it cannot do."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fineprune.common.errors import RunError, UsageError
from fineprune.models.vision import import_torchvision
from fineprune.models.zoo import ModelSpec, accepted_by, build, names, parse_args, torchvision_names

CIFAR = (3, 32, 32)

USER_FILE = """
from torch import nn
from sibling import WIDTH

class Net(nn.Module):
    def __init__(self, num_classes: int = 10, width: int = WIDTH) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

def not_a_model():
    return 3

def broken():
    return [][1]
"""


def thesis_ops(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Convention of the source: modules only, conv and linear with bias, BatchNorm 2n, ReLU n, pooling its input."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * (math.prod(module.weight.shape[1:]) + (module.bias is not None))
        elif isinstance(module, nn.Linear):
            total += output.numel() * (module.in_features + 1)
        elif isinstance(module, nn.BatchNorm2d):
            total += 2 * output.numel()
        elif isinstance(module, nn.ReLU):
            total += output.numel()
        elif isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d):
            total += inputs[0].numel()

    for module in model.modules():
        module.register_forward_hook(count)
    model.eval()(torch.zeros(1, *shape, device="meta"))
    return total


@pytest.mark.parametrize(
    ("name", "args", "millions"),
    [
        ("resnet20", {"width": 83}, 1090.748),
        ("resnet32", {"width": 83}, 1853.806),
        ("resnet56", {"width": 83}, 3379.923),
        ("resnet110", {"width": 83}, 6813.684),  # printed as 6813.685 in the source; its other rows fix this count at 6813.684482
        ("resnet20", {"width": 32}, 163.170),
        ("resnet32", {"width": 32}, 276.875),
        ("resnet56", {"width": 32}, 504.284),
        ("vgg13", {}, 229.392),
        ("vgg16", {}, 314.433),
        ("vgg19", {}, 399.474),
    ],
)
def test_operation_counts_of_the_thesis(name: str, args: dict[str, int], millions: float) -> None:
    with torch.device("meta"):
        model = build(name, **args)
    assert round(thesis_ops(model, CIFAR) / 1e6, 3) == millions


def test_vggs_of_other_widths() -> None:
    with torch.device("meta"):
        planes = [layer.out_channels for layer in build("vgg13", width=16).modules() if isinstance(layer, nn.Conv2d)]
    assert planes == [16, 16, 32, 32, 64, 64, 128, 128, 128, 128]


@pytest.mark.parametrize("name", names())
def test_every_network_takes_channels_and_classes(name: str) -> None:
    with torch.device("meta"):
        model = build(name, in_channels=2, num_classes=7)
        assert model.eval()(torch.zeros(3, 2, 32, 32)).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet20", 9), ("resnet44", 21), ("resnet18-3stage", 6), ("resnet50-3stage", 13), ("wrn22", 9)]
)
def test_depths(name: str, blocks: int) -> None:
    with torch.device("meta"):
        model = build(name)
    assert sum(type(m).__name__ in ("BasicBlock", "Bottleneck", "WideBlock") for m in model.modules()) == blocks


def test_parameter_names_of_the_common_cifar_resnet() -> None:
    keys = build("resnet20").state_dict().keys()
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer2.0.shortcut.1.weight",
        "layer3.2.bn2.bias",
        "linear.bias",
    } <= keys


def test_option_a_shortcut_pads_both_sides_and_has_no_parameters() -> None:
    model = build("resnet20", width=5, shortcut="A")
    assert not any("shortcut" in key for key in model.state_dict())
    x = torch.arange(2 * 5 * 4 * 6, dtype=torch.float32).reshape(2, 5, 4, 6) + 1
    y = model.get_submodule("layer2.0.shortcut")(x)
    assert y.shape == (2, 10, 2, 3)
    assert torch.equal(y[:, 2:7], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 7:].any()


def test_lenet_fits_other_image_sizes() -> None:
    assert build("lenet", in_channels=1, image_size=28)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UsageError, match="image_size of at least 16, got 15"):
        build("lenet", image_size=15)


def test_seed_fixes_the_weights_and_spares_the_global_state() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build("resnet20", seed=seed).state_dict()["layer1.0.conv1.weight"] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_parse_args_types() -> None:
    assert parse_args(["width=83", "dropout=1e-1", "aux=True", "shortcut=A", "x=nan", "y=a=b"]) == {
        "width": 83,
        "dropout": 0.1,
        "aux": True,
        "shortcut": "A",
        "x": "nan",
        "y": "a=b",
    }


@pytest.mark.parametrize("pair", ["width", "=3", "a b=3"])
def test_parse_args_refuses(pair: str) -> None:
    with pytest.raises(UsageError, match="a model argument is KEY=VALUE"):
        parse_args([pair])


def test_parse_args_refuses_a_repeated_key() -> None:
    with pytest.raises(UsageError, match="'width' is given twice"):
        parse_args(["width=1", "width=2"])


def test_spec_survives_json() -> None:
    spec = ModelSpec(name="resnet20", args={"width": 5, "shortcut": "A"})
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert build(spec).state_dict()["conv1.weight"].shape == (5, 3, 3, 3)
    assert build(spec, width=7).state_dict()["conv1.weight"].shape == (7, 3, 3, 3)
    with pytest.raises(UsageError, match="a model is stored as"):
        ModelSpec.from_json({"name": "resnet20"})


def test_spec_is_completed_with_what_the_network_takes() -> None:
    facts = {"in_channels": 1, "num_classes": 7, "image_size": 28}
    assert ModelSpec(name="resnet20", args={"num_classes": 3}).completed(**facts).args == {"in_channels": 1, "num_classes": 3}
    assert ModelSpec(name="lenet").completed(**facts).args == facts
    assert ModelSpec(name="torchvision:resnet18").completed(**facts).args == {"num_classes": 7}


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet21", {}, "unknown model 'resnet21': did you mean .*resnet20"),
        ("alexnet", {}, r"unknown model 'alexnet': did you mean torchvision:alexnet"),
        ("resnet20", {"widht": 3}, "takes no argument 'widht'; it takes width, shortcut, in_channels, num_classes"),
        ("resnet20", {"shortcut": "C"}, "shortcut is A or B, got 'C'"),
        ("resnet20", {"width": "wide"}, "width is a whole number of at least 1, got 'wide'"),
        ("resnet20", {"width": 0}, "width is a whole number of at least 1, got 0"),
        ("resnet20", {"width": True}, "width is a whole number of at least 1, got True"),
        ("wrn10", {"dropout": "x"}, "dropout is a number, got 'x'"),
        ("wrn10", {"dropout": 1}, r"dropout is in \[0,1\), got 1"),
        ("torchvision:resnet19", {}, "no classifier 'resnet19': did you mean .*resnet18"),
        ("torchvision:resnet18", {"colour": 3}, "unexpected keyword argument 'colour'; it takes num_classes"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "weights are not downloaded"),
        ("nowhere.at.all:net", {}, "no Python module named 'nowhere.at.all'"),
        ("nowhere.py:net", {}, "nowhere.py does not exist"),
    ],
)
def test_bad_requests(name: str, args: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, **args)


def test_torchvision_classifiers_build() -> None:
    assert "torchvision:resnet18" in torchvision_names()
    with torch.device("meta"):
        assert round(thesis_ops(build("torchvision:resnet18"), (3, 224, 224)) / 1e6, 3) == 1822.178
        googlenet = build("torchvision:googlenet", num_classes=5)  # warned, and returned a tuple in training
    assert googlenet.train()(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 5)


def test_every_torchvision_classifier_takes_a_number_of_classes() -> None:
    assert [name for name in torchvision_names() if "num_classes" not in accepted_by(name)] == []


def test_torchvision_imports_once_and_quietly() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert import_torchvision() is import_torchvision()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mynet.py").write_text(USER_FILE)
    (tmp_path / "sibling.py").write_text("WIDTH = 11\n")
    (tmp_path / "fails.py").write_text("import torch\nraise KeyError('lost')\n")
    (tmp_path / "imports_missing.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mynet", "sibling", "fails", "imports_missing", "exits"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)


@pytest.mark.parametrize("spec", ["mynet:Net", "mynet.py:Net"])
def test_users_network(project: Path, spec: str) -> None:
    assert build(spec).get_parameter("conv.weight").shape == (11, 3, 3, 3)
    assert build(spec, width=2).get_parameter("conv.weight").shape == (2, 3, 3, 3)
    assert ModelSpec(name=spec).completed(in_channels=3, num_classes=7).args == {"num_classes": 7}


def test_users_file_by_absolute_path_finds_its_siblings(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path("/"))
    assert build(f"{project}/mynet.py:Net").get_parameter("conv.weight").shape[0] == 11


@pytest.mark.parametrize(
    ("spec", "args", "error", "message"),
    [
        ("mynet.py:Nett", {}, UsageError, r"no callable named 'Nett'; it defines Net, broken, not_a_model"),
        ("mynet.py:Net", {"depth": 3}, UsageError, r"unexpected keyword argument 'depth'; it takes num_classes, width"),
        ("mynet.py:not_a_model", {}, UsageError, r"returned int, not a torch.nn.Module"),
        ("mynet.py:broken", {}, RunError, r"mynet.py:broken failed: IndexError: list index out of range \(.*mynet.py, line 14\)"),
        ("fails.py:Net", {}, RunError, r"fails.py cannot be imported: KeyError: 'lost' \(.*fails.py, line 2\)"),
        ("imports_missing:Net", {}, RunError, r"imports_missing cannot be imported: ModuleNotFoundError"),
        ("exits:Net", {}, RunError, r"exits cannot be imported: SystemExit"),
    ],
)
def test_users_errors_are_one_line_with_their_cause(project: Path, spec: str, args: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        build(spec, **args)
    assert "\n" not in str(caught.value)
    assert error is not RunError or caught.value.__cause__ is not None


def test_a_users_factory_may_wrap_its_network(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from torch import nn\ndef make():\n    return nn.DataParallel(nn.Sequential(nn.DataParallel(nn.Linear(2, 3))))\n")
    assert list(build(f"{file}:make").state_dict()) == ["0.weight", "0.bias"]
