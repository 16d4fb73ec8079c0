"""Samples that are given in Python: every form trains the same network, and its bundle needs none of them afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fineprune
from fineprune.common.errors import RunError, UsageError
from fineprune.common.progress import Lines, Silent
from fineprune.models.data.given import given_data
from fineprune.models.objective import AGREEMENT
from support.command import fineprune as command
from support.command import succeed


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 3),
        )  # fmt: skip


def images() -> tuple[Tensor, Tensor]:
    x = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.bucketize(x.mean((1, 2, 3)), torch.tensor([-0.05, 0.05]))


class Broken(Dataset[Any]):
    """Fails at its last sample."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        if position == 11:
            raise OSError("no such file")
        return torch.zeros(1, 8, 8), 0


def renamed(samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    return torch.stack([sample["x"] for sample in samples]), torch.tensor([sample["y"] for sample in samples])


class Dicts(Dataset[Any]):
    """Samples that only a collate_fn makes pairs of."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, position: int) -> dict[str, Any]:
        x, y = images()
        return {"x": x[position], "y": int(y[position])}


FORMS: dict[str, Callable[[], Any]] = {
    "tensors": images,
    "arrays": lambda: [part.numpy() for part in images()],
    "data set": lambda: TensorDataset(*images()),
    "loader": lambda: DataLoader(TensorDataset(*images()), batch_size=5, shuffle=True),
    "collated": lambda: DataLoader(Dicts(), collate_fn=renamed),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_batches(form: str) -> None:
    data = given_data(FORMS[form](), test=images(), seed=3, progress=Silent())
    assert (len(data.train), len(data.validation), len(data.test)) == (43, 5, 48) and data.input_shape == (1, 8, 8) and data.labelled
    x, y = images()
    held_out = torch.randperm(48, generator=torch.Generator().manual_seed(3))[:5].sort().values
    kept = torch.tensor([i for i in range(48) if i not in held_out.tolist()])
    seen = list(data.train.batches(8, generator=torch.Generator().manual_seed(4), augment=True))
    order = torch.cat([batch.indices for batch in seen])
    assert torch.equal(order, torch.randperm(43, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(torch.cat([batch.images for batch in seen]), x[kept][order])
    assert torch.equal(torch.cat([batch.labels for batch in seen]), y[kept][order]) and torch.equal(data.validation.labels, y[held_out])
    rest = data.train.batches(8, generator=torch.Generator().manual_seed(4), start_batch=3, part=(1, 2))
    assert torch.equal(next(rest).images, x[kept][order[24:32].tensor_split(2)[1]])
    assert torch.equal(data.train.subset(torch.tensor([5, 2])).labels, y[kept][[5, 2]])


def test_reading_leaves_the_generators_of_torch_alone() -> None:
    data = given_data(FORMS["loader"](), progress=Silent())
    before = torch.random.get_rng_state()
    list(data.train.batches(8))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_bundle_is_loaded_and_exported_by_passing_the_network_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = fineprune.compress(
        network(), FORMS["loader"](), prune=0.4, epochs=2, batch_size=8, validation=0.25, output=tmp_path / "b", progress=Lines()
    )
    said = capsys.readouterr().err
    assert "36 samples to train on, 12 to validate on (taken from them by seed 0), 0 to test on; the loader's sampler is not used" in said
    assert bundle.facts["data"] is None and bundle.facts["accuracy"]["split"] == "validation" and bundle.facts["accuracy"]["samples"] == 12
    model = fineprune.load(tmp_path / "b", network())
    assert all(torch.equal(value, bundle.weights[name]) for name, value in model.state_dict().items() if name in bundle.weights)
    assert bundle.facts["conv_macs_kept"] < 0.7
    exported = fineprune.to_onnx(tmp_path / "b", tmp_path / "m.onnx", model=network(), samples=images()[0][:4], progress=Silent())
    assert exported.parity is not None and exported.parity.passed


def test_inputs_alone_are_compressed_by_agreement_with_the_dense_network() -> None:
    options: dict[str, Any] = {"preset": "thesis", "prune": 0.3, "progress": Silent()}
    bundle = fineprune.compress(network(), images()[0], epochs=0, **options)
    assert bundle.facts["accuracy"]["measure"] == AGREEMENT.name and bundle.facts["accuracy"]["dense"] == 1
    with pytest.raises(
        UsageError, match=r"needs labels, and there are none in the samples given in Python; .*\(--epochs 0; in Python: epochs=0\)"
    ):
        fineprune.compress(network(), images()[0], epochs=1, **options)


def test_a_sample_that_fails_is_named() -> None:
    data = given_data(Broken(), validation=0, progress=Silent())
    with pytest.raises(RunError, match=r"could not be read at \[8, 9, 10, 11\]: .*no such file"):
        list(data.train.batches(4))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "b"
    fineprune.compress(network(), images(), preset="taylor", prune=0.4, epochs=0, output=folder, progress=Silent())
    return folder


def test_a_bundle_is_evaluated_on_all_samples_with_the_network_given_again(kept: Path) -> None:
    x, y = images()
    model = fineprune.load(kept, network())
    with torch.no_grad():
        share = float((model(x).argmax(1) == y).float().mean())
    for given in (kept, fineprune.Bundle.load(kept)):
        found = fineprune.evaluate(given, FORMS["loader"](), model=network(), progress=Silent())
        assert found.samples == 48 and found.accuracy == pytest.approx(share)
    halved = fineprune.Metric("half", lambda outputs, targets: (outputs.argmax(1) == targets).float() / 2)
    found = fineprune.evaluate(model, (x, y), loss=nn.functional.cross_entropy, metric=halved, progress=Silent())
    assert found.accuracy == pytest.approx(share / 2)
    with pytest.raises(UsageError, match="model belongs to a bundle"):
        fineprune.evaluate(model, (x, y), model=network())


def test_a_bundle_in_memory_goes_where_its_folder_does(kept: Path, tmp_path: Path) -> None:
    bundle = fineprune.Bundle.load(kept)
    model = fineprune.load(bundle, network())
    assert torch.equal(model(images()[0]), fineprune.load(kept, network())(images()[0]))
    again = fineprune.compress(model, images(), preset="taylor", prune=0.3, epochs=0, progress=Silent())
    for name, mask in bundle.masks["fwp"].items():
        assert not bool((again.masks["fwp"][name] & ~mask).any())
    for call in (fineprune.load, fineprune.bench, lambda one: fineprune.to_onnx(one, tmp_path / "m.onnx")):
        with pytest.raises(UsageError, match=r"give its dense architecture: --model file\.py:factory \(in Python: model=network"):
            call(bundle)


def test_on_the_command_line_the_network_is_named_again(kept: Path, tmp_path: Path) -> None:
    code = """
import torch
from torch import nn
def network(channels: int = 6):
    return nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 8, 3),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
def data():
    x = torch.rand(20, 8, 8).mul(255).byte().numpy()
    return (x, torch.arange(20).numpy() % 3), (x, torch.arange(20).numpy() % 3)
def arrays():
    return data()[0]
"""
    (tmp_path / "mine.py").write_text(code)
    named, data = ["--model", f"{tmp_path / 'mine.py'}:network"], f"{tmp_path / 'mine.py'}:data"
    result = succeed("export", kept, *named, "--output", tmp_path / "m.onnx")
    assert "parity was not checked: there are no samples to compare on; --data gives some" in " ".join(result.err.split())
    result = succeed("export", kept, *named, "--data", data, "--int8", "--output", tmp_path / "m.onnx")
    assert "int8" in result.out
    assert "test accuracy" in succeed("eval", kept, *named, "--data", data).out
    succeed("macs", kept, *named)
    refused = command("macs", kept)
    assert refused.code == 2 and "give its dense architecture: --model file.py:factory" in " ".join(refused.err.split())
    refused = command("eval", kept, *named, "--data", f"{tmp_path / 'mine.py'}:arrays")
    assert refused.code == 2 and "returned 2 arrays; return (train, test), each of them a pair" in " ".join(refused.err.split())
