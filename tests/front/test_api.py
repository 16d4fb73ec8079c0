"""The Python API with the user's own network and data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import fineprune
from fineprune.common.errors import RunError, UsageError
from fineprune.common.progress import Silent
from fineprune.export.benchmark import BenchmarkConfig
from fineprune.latency import bench_layers
from fineprune.models.data import load_data
from fineprune.models.data.load import data_from_arrays
from fineprune.networks import network_of


def own_module(num_classes: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, num_classes),
        )  # fmt: skip


def test_own_module_to_bundle_to_onnx(data: str, tmp_path: Path) -> None:
    bundle = fineprune.compress(own_module(), load_data(data), ffp=0.3, fwp=0.4, epochs=1)
    bundle.save(tmp_path / "bundle")
    model = fineprune.load(tmp_path / "bundle", own_module())
    exported = fineprune.to_onnx(bundle, tmp_path / "m.onnx", model=own_module())
    assert exported.parity is not None and exported.parity.passed
    x = np.random.default_rng(0).standard_normal((2, 1, 16, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x})[0], model(torch.from_numpy(x)), atol=1e-5)
    assert bundle.facts["model"] is None
    with pytest.raises(UsageError, match=r"made from a network without a name; give its dense architecture: --model file.py:factory"):
        fineprune.load(tmp_path / "bundle")


def test_short_names_are_the_settings_of_training_and_of_both_masks(data: str) -> None:
    options: dict[str, Any] = {"preset": "taylor", "samples": 40, "progress": Silent()}
    bundle = fineprune.compress(own_module(), load_data(data), prune=0.4, epochs=1, lr=0.003, batch_size=16, exclude="3", **options)
    trained = bundle.facts["settings"]["finetune"]
    assert (trained["epochs"], trained["lr"], trained["batch_size"]) == (1, 0.003, 16) and list(bundle.masks["fwp"]) == ["0"]
    only = fineprune.compress(own_module(), load_data(data), prune=0.4, epochs=0, include=["3"], **options)
    assert list(only.masks["fwp"]) == ["3"]


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, lambda model: torch.compile(model, backend="eager")]
)
def test_a_wrapped_network_gives_the_bundle_of_the_network_inside(wrap: Callable[[nn.Module], nn.Module], data: str) -> None:
    loaded = load_data(data)
    plain, wrapped = (fineprune.compress(model, loaded, prune=0.4, epochs=0, samples=40) for model in (own_module(), wrap(own_module())))
    assert all(torch.equal(plain.weights[name], value) for name, value in wrapped.weights.items())
    masked = plain.restore(wrap(own_module()))
    assert not hasattr(masked, "module") and list(fineprune.Bundle.of(wrap(masked), plain.facts).masks["fwp"]) == list(plain.masks["fwp"])


def test_a_bundle_is_pruned_again_as_its_network_is(data: str, tmp_path: Path) -> None:
    shared = {"ratio": 0.4, "scope": "group", "lanes": 2}
    first = fineprune.compress("lenet", load_data("digits"), preset="thesis", fwp=shared, epochs=0, samples=40)
    more: dict[str, Any] = {"preset": "thesis", "ffp": 0.3, "epochs": 0, "samples": 40}
    again = fineprune.compress(first, load_data("digits"), **more)
    same = fineprune.compress(network_of(first).model, load_data("digits"), **more)
    for kind, masks in same.masks.items():
        assert all(torch.equal(mask, again.masks[kind][name]) for name, mask in masks.items()), kind
    assert all(torch.equal(mask, again.masks["fwp"][name]) for name, mask in first.masks["fwp"].items())
    assert again.facts["pruned_before"] == [{"ratios": first.facts["ratios"], "settings": first.facts["settings"]}]
    assert again.groups.keys() == first.groups.keys() and first.groups, "no weight was dropped: filters share what they shared"
    third = fineprune.compress(again, load_data("digits"), fwp=0.7, epochs=0, samples=40)
    assert not third.groups and [step["settings"]["preset"] for step in third.facts["pruned_before"]] == ["thesis", "thesis"]
    own = fineprune.compress(own_module(), load_data(data), fwp=0.3, epochs=0, samples=40)
    with pytest.raises(UsageError, match="made from a network without a name"):
        fineprune.compress(own, data)


class Flattening(nn.Module):
    """Flattens by view, which takes NCHW memory only, or by flatten."""

    def __init__(self, *, view: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            self.conv, self.deep, self.head = nn.Conv2d(1, 6, 3, stride=2), nn.Conv2d(6, 4, 3), nn.Linear(100, 10)
        self.view = view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.conv(x).relu()).relu()
        return self.head(x.view(x.size(0), -1) if self.view else torch.flatten(x, 1))


@pytest.mark.parametrize("settings", [{"ffp": 0.3}, {"preset": "thesis", "prune": 0.5}, {"prune": 0.5, "epochs": 1}])
def test_a_network_that_flattens_by_view_gives_what_flatten_gives(settings: dict[str, Any], data: str, tmp_path: Path) -> None:
    loaded, settings = load_data(data), {"epochs": 0, "samples": 40, **settings}
    flat, viewed = (fineprune.compress(Flattening(view=view), loaded, **settings) for view in (False, True))
    assert flat.facts["accuracy"]["masked"] == viewed.facts["accuracy"]["masked"]
    for kind, masks in flat.masks.items():
        assert all(torch.equal(mask, viewed.masks[kind][name]) for name, mask in masks.items())
    for name, weight in flat.weights.items():
        torch.testing.assert_close(viewed.weights[name], weight, rtol=1e-3, atol=1e-4)
    viewed.save(tmp_path / "bundle")
    images = next(iter(loaded.test.batches(8))).images
    with torch.no_grad():
        assert fineprune.load(tmp_path / "bundle", Flattening(view=True))(images).shape == (8, 10)


def test_layers_of_a_network_with_weights_masked_are_all_timed(data: str) -> None:
    """The dense twin holds zeros where weights are dropped, and its layers must be found nevertheless."""
    wide = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    bundle = fineprune.compress(wide, load_data(data), prune=0.6, epochs=0, samples=50)
    network = network_of(bundle, model=wide)
    times = bench_layers(network, rounds=1)
    assert {name: [row.name for row in rows] for name, rows in times.items()} == {
        name: ["0", "2"] for name in ("compressed", "compressed int8")
    }


def test_own_module_and_data_in_memory(data: str, tmp_path: Path) -> None:
    """Nothing can be opened again by name: what is needed is given."""
    arrays = np.load(data.removeprefix("npz:"))
    images, labels = arrays["train_images"], arrays["train_labels"]
    bundle = fineprune.compress(own_module(), data_from_arrays("mine", (images, labels)), prune=0.4, epochs=0)
    with pytest.raises(UsageError, match=r"names the data mine: unknown data 'mine'.*; or give --data \(in Python: samples\)"):
        fineprune.to_onnx(bundle, tmp_path / "m.onnx", model=own_module())
    samples = torch.zeros(2, 1, 16, 16)
    exported = fineprune.to_onnx(bundle, tmp_path / "m.onnx", model=own_module(), samples=samples)
    assert exported.parity is not None and exported.parity.passed
    report = fineprune.bench(bundle, BenchmarkConfig(rounds=1, turn_s=0, warmup_s=0), model=own_module(), samples=samples, peers=["int8"])
    assert {row.runtime for row in report.rows} >= {"onnxruntime int8", "engine compressed"}


class Lines(Silent):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def test_less_pruned_than_asked_is_explained(data: str) -> None:
    dense = nn.utils.prune.identity(nn.Conv2d(6, 6, 3, padding=1), "weight")  # a hook computes its weight
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), dense, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    said: list[list[str]] = []
    for model, ratio in ((module, 0.5), (own_module(), 0.99), (own_module(), 0.5)):
        progress = Lines()
        fineprune.compress(model, load_data(data), prune=ratio, epochs=0, samples=20, progress=progress)
        said.append([line for line in progress.lines if "of the convolution multiply-adds are pruned, not" in line])
    assert [line.partition(": ")[2] for line in said[0]] == ["85.7% are in layers left dense"]
    assert [line.partition(": ")[2] for line in said[1]] == ["of every layer some stays, so that none is cut off"]
    assert "not 99.0%" in said[1][0] and not said[2]


def test_compress_leaves_the_callers_network_alone(data: str) -> None:
    model = own_module().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    fineprune.compress(model, data, ffp=0.3, epochs=1, samples=50)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_own_files_by_name(folder: Path, network: str, own_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own_environment.chdir(tmp_path)
    (tmp_path / "mydata.py").write_text(
        "import numpy as np\n\n\ndef digits():\n"
        f"    a = np.load({str(folder / 'digits.npz')!r})\n"
        "    return (a['train_images'], a['train_labels']), (a['test_images'], a['test_labels'])\n"
    )
    bundle = fineprune.compress(network, "mydata.py:digits", model_args={"width": 6}, ffp=0.3, fwp=0.4, epochs=0, output=tmp_path / "b")
    assert bundle.facts["model"]["args"] == {"width": 6, "num_classes": 10}
    assert [entry["name"] for entry in bundle.facts["left_dense"]] == ["up"]
    assert {"depthwise", "grouped"} <= bundle.masks["ffp"].keys()
    assert fineprune.load(tmp_path / "b", trust=[network]).head.in_features == 6


def test_weights_that_are_not_finite_are_refused(data: str, tmp_path: Path) -> None:
    model = own_module()
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(RunError, match=r"3\.weight of the network is NaN or infinite; load a checkpoint"):
        fineprune.compress(model, data, ffp=0.3, epochs=0, output=tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_too_few_outputs_for_the_classes(data: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the model has 7 outputs but the data hold class 9; build it with more classes"):
        fineprune.compress(own_module(7), data, ffp=0.3, epochs=0, output=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_images_of_another_shape() -> None:
    colour = data_from_arrays("colour", (np.zeros((20, 16, 16, 3), np.uint8), np.arange(20) % 2))
    with pytest.raises(UsageError, match="the network's first convolution takes images with 1 channel, not with 3"):
        fineprune.compress(own_module(2), colour, ffp=0.3, epochs=0)


def test_a_network_without_convolutions(data: str) -> None:
    with pytest.raises(UsageError, match="the network has no convolution that can carry masks"):
        fineprune.compress(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), data, ffp=0.3, epochs=0)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'fineprune' has no attribute 'nothing'"):
        fineprune.nothing  # noqa: B018


def test_a_network_of_which_nothing_may_be_trained_is_refused_before_any_work(data: str) -> None:
    with pytest.raises(RunError, match="no trainable parameter: none requires a gradient"):
        fineprune.compress(own_module().requires_grad_(False), load_data(data), prune=0.4, epochs=1)


@pytest.mark.parametrize("epochs", [0, 1])
def test_frozen_batchnorm_keeps_its_statistics(epochs: int, data: str) -> None:
    model = own_module().train()
    model[1].running_mean += 0.3
    model[1].eval().requires_grad_(False)
    bundle = fineprune.compress(model, load_data(data), prune=0.4, epochs=epochs, samples=40)
    assert torch.equal(bundle.weights["1.running_mean"], torch.full((6,), 0.3))


def test_a_bundle_is_compressed_again_on_top_of_its_masks(data: str, tmp_path: Path) -> None:
    loaded = load_data(data)
    filters = fineprune.compress(own_module(), loaded, fwp={"criterion": "fpgm", "ratio": 0.4}, epochs=0, samples=40)
    filters.save(tmp_path / "filters")
    model = fineprune.load(tmp_path / "filters", own_module())
    both = fineprune.compress(model, loaded, preset="thesis", ffp=0.15, epochs=0, samples=40, output=tmp_path / "both")
    assert all(torch.equal(both.masks["fwp"][name], mask) for name, mask in filters.masks["fwp"].items())
    assert both.masks["ffp"] and not filters.masks["ffp"]
    assert both.facts["conv_macs_kept"] < filters.facts["conv_macs_kept"]
    images = next(iter(loaded.test.batches(8))).images
    with torch.no_grad():
        assert torch.isfinite(fineprune.load(tmp_path / "both", own_module())(images)).all()
