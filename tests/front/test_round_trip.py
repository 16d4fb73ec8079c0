"""Networks that a bundle would not give back are refused before any work, and one that changed is noticed when the run ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fineprune
from fineprune.common.errors import RunError, UsageError
from fineprune.models.data import load_data
from support.fakes import Recorder


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class Versioned(Net):
    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Forgetful(Net):
    """Its loading does not take what its saving gives."""

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        state[f"{prefix}head.bias"] = state[f"{prefix}head.bias"] + 1
        super()._load_from_state_dict(state, prefix, *rest)


class Lazy(Net):
    """Makes a buffer at the first forward."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "seen"):
            self.register_buffer("seen", torch.ones(()))
        return super().forward(x)


class Noted(Net):
    def get_extra_state(self) -> Any:
        return {"shape": (3, 4)}

    def set_extra_state(self, state: Any) -> None:
        pass


class Drawn(Net):
    """Computes with numbers that are drawn anew each time it is built, and are in no state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.randn(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)) * self.features)


class Drifting(Net):
    """A non-persistent buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale += 0.1
        return super().forward(x) * self.scale


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (Forgetful, RunError, r"a bundle of this network would change head\.bias: loading the state dict does not give it back"),
        (Noted, UsageError, "the state '_extra_state' of the network is a dict, and a bundle holds tensors and plain values"),
    ],
)
def test_what_would_not_come_back_is_refused_before_any_work(make: Callable[[], nn.Module], kind: type, message: str, data: str) -> None:
    progress = Recorder()
    with pytest.raises(kind, match=message):
        fineprune.compress(make(), data, prune=0.3, epochs=1, samples=20, progress=progress)
    assert not progress.loops and not progress.lines


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Drawn", "a bundle of this network would compute other outputs: some of what it computes with is not in its state dict"),
        ("Lazy", r'a bundle of this network could not be read again: .*Unexpected key\(s\) in state_dict: "seen"'),
    ],
)
def test_what_the_factory_would_not_build_again_is_refused_before_any_work(name: str, message: str, data: str) -> None:
    progress = Recorder()
    with pytest.raises(RunError, match=message):
        fineprune.compress(f"{Path(__file__)}:{name}", data, prune=0.3, epochs=1, samples=20, progress=progress)
    assert not progress.loops


def test_what_only_training_changes_is_noticed_when_it_is_done(data: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"would compute other outputs: .*register that as a parameter or a persistent buffer"):
        fineprune.compress(Drifting(), data, prune=0.3, epochs=1, samples=20, output=tmp_path / "b")
    assert not (tmp_path / "b").exists() and (tmp_path / "b.work").is_dir(), "the fine-tuning is kept"


def test_a_network_that_asks_for_its_version_is_trained_and_read_again(data: str, tmp_path: Path) -> None:
    bundle = fineprune.compress(Versioned(), data, prune=0.3, epochs=1, samples=20, output=tmp_path / "b")
    x = load_data(data).test.batches(8)
    images = next(iter(x)).images
    model = fineprune.load(tmp_path / "b", Versioned())
    assert torch.equal(model(images), bundle.restore(Versioned())(images))


def test_your_own_bundle_is_read_by_every_command(data: str, tmp_path: Path) -> None:
    """Of a network that was pruned and trained by hand: what commands need is counted, and what was not measured is not said."""
    from fineprune.compressor.bake import bake

    mask = torch.ones(4, 1, 3, 3, dtype=torch.bool)
    mask[:2] = False
    model = bake(Net(), {"fwp": {"conv": mask}})
    fineprune.Bundle.of(model, {}).save(tmp_path / "bare")
    assert torch.equal(fineprune.load(tmp_path / "bare", Net()).conv.fwp_mask, mask)
    with pytest.raises(RunError, match=r"input_shape is missing; .*give Bundle\.of the facts \{'input_shape': \(C, H, W\)\}"):
        fineprune.to_onnx(tmp_path / "bare", tmp_path / "m.onnx", model=Net())
    with pytest.raises(RunError, match=r"the bundle: input_shape is missing; give Bundle\.of the facts \{'input_shape': \(C, H, W\)\}"):
        fineprune.to_onnx(fineprune.Bundle.of(model, {}), tmp_path / "m.onnx", model=Net())
    bundle = fineprune.Bundle.of(model, {"input_shape": (1, 16, 16)})
    bundle.save(tmp_path / "b")
    assert bundle.facts["ratios"]["achieved"] == {"ffp": 0.0, "fwp": 0.5}
    assert fineprune.to_onnx(tmp_path / "b", tmp_path / "m.onnx", model=Net(), samples=torch.ones(2, 1, 16, 16)).parity is not None
