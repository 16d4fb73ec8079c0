"""Networks as they are found, compressed in Python from beginning to end: the caller's module stays as it was."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fineprune
from fineprune.common.errors import RunError
from fineprune.models.data import ImageData, data_from_arrays
from support.fakes import Recorder


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Four classes of 8x8 images, told apart by the quarter that is bright."""

    def split(seed: int) -> tuple[np.ndarray, np.ndarray]:
        generator, labels = np.random.default_rng(seed), np.arange(48) % 4
        images = generator.integers(0, 90, (48, 3, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[:, label // 2 * 4 : label // 2 * 4 + 4, label % 2 * 4 : label % 2 * 4 + 4] += 120
        return images.astype(np.uint8), labels

    return data_from_arrays("quarters", split(0), split(1))


class Unusual(nn.Module):
    """Two convolutions and a classifier; `step` computes what lies between them."""

    def __init__(self, step: Callable[["Unusual", Tensor], Tensor], prepare: Callable[["Unusual"], object] = lambda model: None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second, self.aside = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2), nn.Conv2d(6, 2, 1)
            self.head = nn.Linear(8, 4)
        self.step = step
        prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.step(self, x))).mean((2, 3)))


def plain(model: Unusual, x: Tensor) -> Tensor:
    return F.relu(model.first(x))


def in_place(model: Unusual, x: Tensor) -> Tensor:
    x -= 0.5
    return F.relu(model.first(x.div_(2)))


def keeps(model: Unusual, x: Tensor) -> Tensor:
    model.features = [F.relu(model.first(x))]
    return model.features[0]


def looks(model: Unusual, x: Tensor) -> Tensor:
    first = model.first
    return F.relu(first(x.to(first.weight.dtype) / first.kernel_size[0])) if isinstance(first, nn.Conv2d) else x


def aside(model: Unusual, x: Tensor) -> Tensor:
    x = F.relu(model.first(x))
    model.extra = model.aside(x)
    return x


def no_grad_stem(model: Unusual, x: Tensor) -> Tensor:
    with torch.no_grad():
        return F.relu(model.first(x))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "writes to its input": (lambda: Unusual(in_place), {}),
    "keeps activations": (lambda: Unusual(keeps), {}),
    "looks at its layers": (lambda: Unusual(looks), {}),
    "hooks": (lambda: Unusual(plain, lambda m: m.first.register_forward_hook(lambda layer, inputs, output: 2 * output + 1)), {}),
    "own forward": (
        lambda: Unusual(plain, lambda m: setattr(m.first, "forward", lambda x: 2 * nn.Conv2d.forward(m.first, x))),
        {"first": "its forward is replaced on the module itself"},
    ),
    "auxiliary head": (lambda: Unusual(aside), {"aside": "no gradient reaches it"}),
    "frozen stem": (lambda: Unusual(no_grad_stem), {"first": "no gradient reaches it"}),
    "half": (lambda: Unusual(plain).half(), {}),
    "bfloat16": (lambda: Unusual(plain).bfloat16(), {}),
    "double": (lambda: Unusual(plain).double(), {}),
}


def state(model: nn.Module) -> list[object]:
    """What a run could change in a module, as plain values."""
    tensors = [(name, value.dtype, str(value.device), value.double().sum().item()) for name, value in model.state_dict().items()]
    flags = [(name, module.training, type(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    return [tensors, flags, [parameter.requires_grad for parameter in model.parameters()], "forward" in vars(model.get_submodule("second"))]


@pytest.mark.parametrize(("make", "dense"), NETWORKS.values(), ids=NETWORKS)
def test_unusual_networks_are_compressed(make: Callable[[], nn.Module], dense: dict[str, str], data: ImageData) -> None:
    model = make()
    before = state(model)
    bundle = fineprune.compress(model, data, preset="taylor", ffp=0.2, fwp=0.3, epochs=1, progress=Recorder())
    assert state(model) == before
    left = {layer["name"]: layer["reason"] for layer in bundle.facts["left_dense"] if layer["name"] != "aside" or "aside" in dense}
    assert left.keys() == dense.keys() and all(left[name].startswith(reason) for name, reason in dense.items())
    assert set(bundle.masks["fwp"]) == {"first", "second"} - dense.keys()
    images = next(iter(data.test.batches(4))).images
    once, again = (bundle.restore(make())(images.clone()) for _ in range(2))
    assert once.dtype == torch.float32 and torch.equal(once, again)


@pytest.mark.parametrize(("make", "dense"), NETWORKS.values(), ids=NETWORKS)
def test_what_needs_no_gradient_compresses_them_too(make: Callable[[], nn.Module], dense: dict[str, str], data: ImageData) -> None:
    model = make()
    before = state(model)
    bundle = fineprune.compress(model, data, prune=0.4, epochs=1, progress=Recorder())
    assert state(model) == before
    left = {layer["name"] for layer in bundle.facts["left_dense"]} - {"aside"}
    assert left == {name for name, reason in dense.items() if "gradient" not in reason}
    images = next(iter(data.test.batches(4))).images
    once, again = (bundle.restore(make())(images.clone()) for _ in range(2))
    assert once.dtype == torch.float32 and torch.equal(once, again)


class FailsLater(Unusual):
    """Raises in the middle of the first calibration pass."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and len(x) > 2:
            raise ConnectionError("the disk went away")
        return super().forward(x)


def test_a_network_that_fails_stays_as_it_was(data: ImageData) -> None:
    for model, error in ((FailsLater(plain), ConnectionError), (Unusual(lambda m, x: F.dropout(plain(m, x))), RunError)):
        model.second.requires_grad_(False)
        model.first.eval()
        before = state(model)
        with pytest.raises(error):
            fineprune.compress(model, data, preset="taylor", ffp=0.2, fwp=0.3, epochs=0, progress=Recorder())
        assert state(model) == before
